/* What a program sees that resolves and connects as its libc does: built once with glibc and once with musl.
 *
 *   client resolve NAME         each IPv4 address of the name, one a line, sorted as the libc gives them
 *   client get NAME PORT PATH   the body that an HTTP server there answers
 *   client gap NAME SECONDS     resolves the name again and again; the longest time without an answer, in milliseconds
 *
 * Exit status: 0, 1 when the name does not resolve, 2 when nobody answers. */
#include <netdb.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static struct addrinfo *resolve(const char *name, const char *port) {
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found = NULL;
    int failed = getaddrinfo(name, port, &hints, &found);
    if (failed) {
        fprintf(stderr, "%s: %s\n", name, gai_strerror(failed));
        return NULL;
    }
    return found;
}

static int print(const struct addrinfo *found) {
    char text[INET_ADDRSTRLEN];
    for (; found; found = found->ai_next) {
        if (found->ai_family != AF_INET)
            continue;
        const struct sockaddr_in *address = (const struct sockaddr_in *)found->ai_addr;
        puts(inet_ntop(AF_INET, &address->sin_addr, text, sizeof text));
    }
    return 0;
}

static int get(const struct addrinfo *found, const char *name, const char *path) {
    char buffer[4096];
    int body = 0, length = snprintf(buffer, sizeof buffer, "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n", path, name);
    int stream = socket(found->ai_family, found->ai_socktype, 0);
    if (length >= (int)sizeof buffer || stream < 0 || connect(stream, found->ai_addr, found->ai_addrlen) || write(stream, buffer, length) != length) {
        perror(name);
        return 2;
    }
    /* One read takes head and body apart: the test's server writes its short answer at once. */
    while ((length = read(stream, buffer, sizeof buffer - 1)) > 0) {
        buffer[length] = 0;
        char *start = body ? buffer : strstr(buffer, "\r\n\r\n");
        if (start)
            fputs(body ? start : start + 4, stdout);
        body |= start != NULL;
    }
    return body ? 0 : 2;
}

static long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

static int gap(const char *name, long seconds) {
    long end = now() + seconds * 1000, answered = now(), longest = 0;
    puts("resolving");
    fflush(stdout);
    while (now() < end) {
        struct addrinfo *found = NULL, hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM};
        if (!getaddrinfo(name, NULL, &hints, &found)) {
            if (now() - answered > longest)
                longest = now() - answered;
            answered = now();
            freeaddrinfo(found);
        }
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    if (now() - answered > longest)
        longest = now() - answered;
    printf("%ld\n", longest);
    return 0;
}

int main(int count, char **words) {
    struct addrinfo *found;
    if (count == 3 && !strcmp(words[1], "resolve"))
        return (found = resolve(words[2], NULL)) ? print(found) : 1;
    if (count == 5 && !strcmp(words[1], "get"))
        return (found = resolve(words[2], words[3])) ? get(found, words[2], words[4]) : 1;
    if (count == 4 && !strcmp(words[1], "gap"))
        return gap(words[2], atol(words[3]));
    fputs("usage: client gap NAME SECONDS | resolve NAME | get NAME PORT PATH\n", stderr);
    return 64;
}
