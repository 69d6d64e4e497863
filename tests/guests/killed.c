/*
 * Children that are killed where they stand, by their parent or by somebody outside: `killed DIR [--from-outside]`. A step is a
 * look, or one child that was killed and noticed, and another that takes its place. Every second one has two threads.
 */
#include "guest.h"

#include <pthread.h>
#include <sys/wait.h>

#define CHILDREN 48
static pid_t children[CHILDREN];
static uint64_t rng = 9;

static void *rest(void *nothing) {
    for (;;) pause();
    return nothing;
}

static pid_t bear(int at) {
    pid_t child = MUST(fork());
    if (child) return child;
    pthread_t second;
    if (at % 2) MUST0(pthread_create(&second, NULL, rest, NULL));
    for (;;) pause();
}

static void notice(pid_t child) {
    int status;
    CHECK(waitpid(child, &status, 0) == child, "waitpid: %s", strerror(errno));
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "a child ended with %x", status);
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    bool from_outside = guest_option(argc, argv, "from-outside", 0);
    for (int i = 0; i < CHILDREN; i++) children[i] = bear(i);
    guest_ready();
    while (!guest_finishing()) {
        siginfo_t ended = {0};
        int at = (int)random_below(&rng, CHILDREN);
        guest_sleep_ms(1);
        if (from_outside) {
            CHECK(waitid(P_ALL, 0, &ended, WEXITED | WNOWAIT | WNOHANG) == 0, "waitid: %s", strerror(errno));
            for (at = 0; at < CHILDREN && children[at] != ended.si_pid;) at++;
            if (at == CHILDREN) {
                guest_step();
                continue;
            }
        } else {
            MUST(kill(children[at], SIGKILL));
        }
        notice(children[at]);
        children[at] = bear(at);
        guest_step();
    }
    for (int i = 0; i < CHILDREN; i++) {
        CHECK(from_outside || kill(children[i], 0) == 0, "a child is not there any more");
        kill(children[i], SIGKILL);
        notice(children[i]);
    }
    guest_ok();
}
