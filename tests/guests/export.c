/*
 * A job for debuggers: functions with known names on the stacks of two threads and a child, and memory of every kind with known content.
 *
 *   export DIR
 *
 * A debugger finds: `answer` (42, in the child 43), `heap` and `shared` (with a pattern for each page), `untouched` (never written),
 * `hidden` (left out of core dumps) and `constant` (in the executable alone).
 */
#include "guest.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define PAGES 16UL
#define STAYS(call)                                                                                                            \
    do {                                                                                                                       \
        call;                                                                                                                  \
        __asm__ volatile("" ::: "memory"); /* no tail call */                                                                  \
    } while (0)

volatile long answer = 1;
const char constant[] = "this is in the executable alone";
uint64_t *heap, *shared, *untouched, *hidden;

static uint64_t *map(int flags) {
    uint64_t *at = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED, "mmap: %s", strerror(errno));
    return at;
}

__attribute__((noinline)) void in_the_thread(void) {
    for (;;) STAYS(pause());
}

static void *thread(void *argument) {
    STAYS(in_the_thread());
    return argument;
}

__attribute__((noinline)) void in_the_child(void) {
    for (;;) STAYS(pause());
}

__attribute__((noinline)) void inner_function(void) {
    while (!guest_finishing()) {
        guest_step();
        STAYS(guest_sleep_ms_eintr(10));
    }
}

__attribute__((noinline)) void outer_function(void) { STAYS(inner_function()); }

int main(int argc, char **argv) {
    guest_start(argc, argv);
    heap = map(MAP_PRIVATE);
    shared = map(MAP_SHARED);
    untouched = map(MAP_PRIVATE);
    hidden = map(MAP_PRIVATE);
    /* Every other page; those between read as zero. */
    for (size_t page = 0; page < PAGES; page += 2) {
        heap[page * PAGE / 8] = 0x1111000000000000 + page;
        shared[page * PAGE / 8] = 0x2222000000000000 + page;
        hidden[page * PAGE / 8] = 0x3333000000000000 + page;
    }
    MUST(madvise(hidden, PAGES * PAGE, MADV_DONTDUMP));
    pthread_t other;
    MUST0(pthread_create(&other, NULL, thread, NULL));
    MUST0(pthread_setname_np(other, "waiting"));
    pid_t child = MUST(fork());
    if (child == 0) {
        MUST(prctl(PR_SET_PDEATHSIG, SIGKILL));
        answer = 43;
        in_the_child();
    }
    char pid[32];
    snprintf(pid, sizeof pid, "%d", child);
    guest_link("say.child", pid);
    answer = 42;
    guest_sleep_ms(100); /* all have come to where they stay */
    guest_ready();
    STAYS(outer_function());
    MUST(kill(child, SIGKILL));
    MUST(waitpid(child, NULL, 0));
    CHECK(answer == 42 && constant[0] == 't', "the memory has changed");
    guest_ok();
}
