/*
 * A job that does, all the time, what is awkward in the middle of a checkpoint.
 *
 *   restless DIR fork|quick-fork|exec|threads|mappings|exit [N]
 *
 * fork: a child that lives for about a millisecond, each step; quick-fork: a child that ends at once, without a pause; exec: the same program anew, each step; threads: a thread starts and ends,
 * each step; mappings: something is mapped and unmapped, each step; exit: it ends by itself after N steps. 1 MiB of memory is
 * changed and checked as well (but for exec, which keeps nothing).
 */
#include "guest.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define PAGES 256
static char *pages;
static uint64_t seed[PAGES], rng = 5;

static void check_pages(void) {
    for (size_t page = 0; page < PAGES; page++)
        CHECK(page_difference(pages + page * PAGE, seed[page]) < 0, "page %zu differs after %lu steps", page, guest_steps);
}

static void change_pages(void) {
    for (int i = 0; i < 5; i++) {
        size_t page = random_below(&rng, PAGES);
        seed[page] = random_next(&rng) | 1;
        page_fill(pages + page * PAGE, seed[page]);
    }
}

static void fork_once(bool quickly) {
    pid_t child = fork();
    CHECK(child >= 0, "fork: %s", strerror(errno));
    if (child == 0) {
        memset(pages, 'c', PAGE);
        if (!quickly) usleep(1000);
        _exit(7);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7, "the child ended with %x", status);
}

static void *short_lived(void *argument) {
    usleep(500);
    return argument;
}

static void thread_once(void) {
    pthread_t thread;
    void *result;
    MUST0(pthread_create(&thread, NULL, short_lived, pages));
    MUST0(pthread_join(thread, &result));
    CHECK(result == pages, "a thread returned something else");
}

static void map_once(void) {
    size_t size = (1 + random_below(&rng, 64)) * PAGE;
    char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED, "mmap: %s", strerror(errno));
    memset(at, 'm', size);
    CHECK(at[size - 1] == 'm', "a fresh mapping lost what was written");
    MUST(munmap(at, size));
}

int main(int argc, char **argv) {
    CHECK(argc >= 3, "usage: restless DIR MODE [N]");
    long number = argc > 3 ? atol(argv[3]) : 0;
    bool quick = strcmp(argv[2], "quick-fork") == 0;
    bool execs = strcmp(argv[2], "exec") == 0, again = execs && number > 0;
    if (again) {
        CHECK(realpath(argv[1], guest_dir), "realpath: %s", strerror(errno));
        guest_steps = (uint64_t)number;
    } else {
        guest_start(argc, argv);
    }
    pages = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(pages != MAP_FAILED, "mmap: %s", strerror(errno));
    if (!again) guest_ready();
    while (!guest_finishing()) {
        change_pages();
        if (quick || strcmp(argv[2], "fork") == 0) fork_once(quick);
        else if (strcmp(argv[2], "threads") == 0) thread_once();
        else if (strcmp(argv[2], "mappings") == 0) map_once();
        else if (strcmp(argv[2], "exit") == 0 && guest_steps >= (uint64_t)number) break;
        guest_step();
        if (!quick) guest_sleep_ms(3);
        if (execs) {
            char steps[24];
            check_pages();
            snprintf(steps, sizeof steps, "%lu", guest_steps);
            execl("/proc/self/exe", argv[0], argv[1], argv[2], steps, NULL);
            guest_fail("exec: %s", strerror(errno));
        }
    }
    check_pages();
    guest_ok();
}
