/* What a program sees that resolves and connects as its libc does: built once with glibc and once with musl.
 *
 *   client resolve NAME         each IPv4 address of the name, one a line, sorted as the libc gives them
 *   client get NAME PORT PATH   the body that an HTTP server there answers
 *
 * Exit status: 0, 1 when the name does not resolve, 2 when nobody answers. */
#include <netdb.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
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

int main(int count, char **words) {
    struct addrinfo *found;
    if (count == 3 && !strcmp(words[1], "resolve"))
        return (found = resolve(words[2], NULL)) ? print(found) : 1;
    if (count == 5 && !strcmp(words[1], "get"))
        return (found = resolve(words[2], words[3])) ? get(found, words[2], words[4]) : 1;
    fputs("usage: client resolve NAME | get NAME PORT PATH\n", stderr);
    return 64;
}
