/*
 * Holds descriptors and lets them be, in steps: what a delta of such a job costs is what they cost that nobody uses.
 *
 *   --connections N    connections over loopback, both ends here, each with something sent once and read
 *   --epoll            a set that watches one end of each
 *   --files N          regular files, open for writing, each at an offset of its own
 *   --pipes N          empty pipes
 *   --mappings N       mappings of two pages that cannot be joined: every other one is read-only; each has content
 *   --once-mib N       on SIGUSR1, so much memory is overwritten
 *
 * On `finish` every connection carries a byte in either direction, and every file is at its offset, every mapping as it was.
 */
#include "guest.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>

static void exchange(int from, int to) {
    char byte = 'x', got = 0;
    CHECK(send(from, &byte, 1, 0) == 1, "send: %s", strerror(errno));
    CHECK(recv(to, &got, 1, 0) == 1 && got == byte, "a byte was lost: %s", strerror(errno));
}

static volatile sig_atomic_t asked;

static void on_usr1(int number) {
    (void)number;
    asked++;
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    long connections = guest_option(argc, argv, "connections", 0), files = guest_option(argc, argv, "files", 0);
    long pipes = guest_option(argc, argv, "pipes", 0);
    struct rlimit limit = {16384, 16384};
    if (setrlimit(RLIMIT_NOFILE, &limit)) guest_fail("%ld descriptors are not allowed here", 16384L);

    int(*ends)[2] = calloc((size_t)connections + 1, sizeof *ends);
    int set = guest_option(argc, argv, "epoll", 0) ? MUST(epoll_create1(0)) : -1;
    if (connections) {
        int listener = MUST(socket(AF_INET, SOCK_STREAM, 0));
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t length = sizeof at;
        MUST(bind(listener, (struct sockaddr *)&at, length));
        MUST(listen(listener, 64));
        MUST(getsockname(listener, (struct sockaddr *)&at, &length));
        for (long i = 0; i < connections; i++) {
            ends[i][0] = MUST(socket(AF_INET, SOCK_STREAM, 0));
            MUST(connect(ends[i][0], (struct sockaddr *)&at, length));
            ends[i][1] = MUST(accept(listener, NULL, NULL));
            exchange(ends[i][0], ends[i][1]);
            exchange(ends[i][1], ends[i][0]);
            struct epoll_event event = {.events = EPOLLIN, .data.fd = ends[i][1]};
            if (set >= 0) MUST(epoll_ctl(set, EPOLL_CTL_ADD, ends[i][1], &event));
        }
    }
    int *opened = calloc((size_t)files + 1, sizeof *opened);
    for (long i = 0; i < files; i++) {
        char path[PATH_MAX], name[32];
        snprintf(name, sizeof name, "file.%ld", i);
        opened[i] = MUST(open(guest_path(path, name), O_CREAT | O_RDWR, 0644));
        MUST(ftruncate(opened[i], 4096));
        MUST(lseek(opened[i], i % 4096, SEEK_SET));
    }
    for (long i = 0; i < pipes; i++) {
        int both[2];
        MUST(pipe(both));
    }
    size_t mappings = (size_t)guest_option(argc, argv, "mappings", 0);
    char *mapped = mmap(NULL, (mappings + 1) * 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(mapped != MAP_FAILED, "mmap: %s", strerror(errno));
    for (size_t i = 0; i < mappings; i++) {
        page_fill(mapped + i * 2 * PAGE, i + 1);
        if (i % 2) MUST(mprotect(mapped + i * 2 * PAGE, 2 * PAGE, PROT_READ));
    }
    size_t once = (size_t)guest_option(argc, argv, "once-mib", 0) << 20;
    char *memory = malloc(once + 1);
    CHECK(memory, "no memory");
    memset(memory, 1, once + 1);
    struct sigaction action = {.sa_handler = on_usr1, .sa_flags = SA_RESTART};
    MUST(sigaction(SIGUSR1, &action, NULL));
    guest_ready();
    while (!guest_finishing()) {
        if (asked) {
            asked = 0;
            memset(memory, (int)guest_steps, once + 1);
        }
        guest_step();
        guest_sleep_ms_eintr(20);
    }
    for (long i = 0; i < connections; i++) {
        exchange(ends[i][0], ends[i][1]);
        exchange(ends[i][1], ends[i][0]);
    }
    for (long i = 0; i < files; i++)
        CHECK(lseek(opened[i], 0, SEEK_CUR) == i % 4096, "file %ld is at another offset", i);
    for (size_t i = 0; i < mappings; i++)
        CHECK(page_difference(mapped + i * 2 * PAGE, i + 1) < 0, "mapping %zu has other content", i);
    guest_ok();
}
