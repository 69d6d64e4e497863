/*
 * A small job with something of everything that an image can hold: processes, threads, memory of its own, shared and mapped from a
 * file, a pipe with something in it, a timer, handlers. The chain in tests/golden was taken of it.
 *
 * Action 1 forks a child, whose pages an image borrows from its parent's.
 */
#include "guest.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/time.h>

#define PAGES 4UL

static void on_signal(int signal) { (void)signal; }

static void *second(void *nothing) {
    pthread_setname_np(pthread_self(), "second");
    for (;;) pause();
    return nothing;
}

/* A page of nothing on either side keeps it apart from others. */
static unsigned char *area(int how, int fd, uint64_t seed) {
    unsigned char *all = MUST(mmap(NULL, (PAGES + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    unsigned char *at = MUST(mmap(all + PAGE, PAGES * PAGE, PROT_READ | PROT_WRITE, how | MAP_FIXED, fd, 0));
    for (size_t page = 0; page < PAGES; page++) page_fill(at + page * PAGE, seed << 8 | page);
    return at;
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    unsigned char *own = area(MAP_PRIVATE | MAP_ANONYMOUS, -1, 1);
    unsigned char *secret = area(MAP_PRIVATE | MAP_ANONYMOUS, -1, 2);
    int memfd = MUST(memfd_create("golden", MFD_CLOEXEC));
    MUST(ftruncate(memfd, PAGES * PAGE));
    area(MAP_SHARED, memfd, 3);
    char path[PATH_MAX];
    int file = MUST(open(guest_path(path, "data"), O_CREAT | O_RDWR | O_TRUNC | O_CLOEXEC, 0600));
    MUST(write(file, "a line\n", 7));
    int ends[2];
    MUST(pipe(ends));
    MUST(write(ends[1], "in the pipe", 11));
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    MUST(sigaction(SIGUSR1, &action, NULL));
    MUST(sigaction(SIGALRM, &action, NULL));
    struct itimerval hour = {.it_value.tv_sec = 3600};
    MUST(setitimer(ITIMER_REAL, &hour, NULL));
    pthread_t thread;
    MUST(-(long)pthread_create(&thread, NULL, second, NULL));
    char range[64];
    snprintf(range, sizeof range, "%lx-%lx", (unsigned long)secret, (unsigned long)secret + PAGES * PAGE);
    guest_link("say.secret", range);
    guest_ready();
    bool forked = false;
    while (!guest_finishing()) {
        if (!forked && guest_has("go.1")) {
            forked = true;
            if (MUST(fork()) == 0)
                for (;;) pause();
        }
        page_fill(own + guest_steps % PAGES * PAGE, 4UL << 8 | guest_steps);
        guest_step();
        guest_sleep_ms(20);
    }
    guest_ok();
}
