/* What a program sees that resolves and connects as its libc does: built once with glibc and once with musl.
 *
 *   client resolve NAME         each IPv4 address of the name, one a line, sorted as the libc gives them
 *   client get NAME PORT PATH   the body that an HTTP server there answers
 *   client steadily NAME SECS   begins to resolve the name each 50 ms: says so in a line, and in another one how many
 *                               attempts there were, how many failed, and how many milliseconds the slowest took
 *   client once NAME            says in a line that it begins to, and resolves the name
 *
 * Exit status: 0, 1 when the name does not resolve, 2 when nobody answers. */
#include <netdb.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
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

/* One attempt, in a process of its own: one that hangs does not keep the next from beginning. */
static void attempt(const char *name, long *took) {
    if (fork())
        return;
    long begun = now();
    if (resolve(name, NULL))
        *took = now() - begun;
    _exit(0);
}

static void say(const char *line) {
    puts(line);
    fflush(stdout);
}

static int steadily(const char *name, long seconds) {
    enum { EVERY = 50, MOST = 3000 };
    long *took = mmap(NULL, MOST * sizeof *took, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (took == MAP_FAILED)
        return 2;
    int count = 0, failed = 0;
    long slowest = 0;
    say("resolving");
    for (long end = now() + seconds * 1000; now() < end && count < MOST; count++) {
        took[count] = -1;
        attempt(name, &took[count]);
        nanosleep(&(struct timespec){.tv_nsec = EVERY * 1000000}, NULL);
    }
    while (wait(NULL) > 0)
        ;
    for (int one = 0; one < count; one++) {
        failed += took[one] < 0;
        slowest = took[one] > slowest ? took[one] : slowest;
    }
    printf("%d %d %ld\n", count, failed, slowest);
    return 0;
}

static int once(const char *name) {
    say("resolving");
    return resolve(name, NULL) ? 0 : 1;
}

int main(int count, char **words) {
    struct addrinfo *found;
    if (count == 3 && !strcmp(words[1], "resolve"))
        return (found = resolve(words[2], NULL)) ? print(found) : 1;
    if (count == 5 && !strcmp(words[1], "get"))
        return (found = resolve(words[2], words[3])) ? get(found, words[2], words[4]) : 1;
    if (count == 4 && !strcmp(words[1], "steadily"))
        return steadily(words[2], atol(words[3]));
    if (count == 3 && !strcmp(words[1], "once"))
        return once(words[2]);
    fputs("usage: client resolve NAME | get NAME PORT PATH | steadily NAME SECONDS | once NAME\n", stderr);
    return 64;
}
