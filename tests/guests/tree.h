/*
 * What guests of several processes share: parts, workers that the root drives through pipes, and memory that changes.
 *
 * A worker waits for an order on a pipe, does what its part has it do, and answers on another: after a step of the root all have
 * done a step. Told to finish, it checks all that it can know by itself, and ends with an exit code that the root expects.
 * Any process may give the verdict "FAIL"; only the root, at the end of all, says "ok".
 */
#ifndef TREE_H
#define TREE_H

#include "guest.h"
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* -- parts -------------------------------------------------------------------------------------------------------------------- */

struct part {
    const char *name;
    void (*set_up)(void);
    void (*step)(void);
    void (*finish)(void);
};

static pid_t tree_root;

/* `GUEST - list` prints the parts, `GUEST DIR NAME` plays one. */
UNUSED static int tree_main(int argc, char **argv, const struct part *parts, size_t count) {
    const struct part *part = NULL;
    for (size_t i = 0; argc >= 3 && i < count; i++) {
        if (strcmp(argv[2], "list") == 0) puts(parts[i].name);
        if (strcmp(parts[i].name, argv[2]) == 0) part = &parts[i];
    }
    if (argc >= 3 && strcmp(argv[2], "list") == 0) return 0;
    guest_start(argc, argv);
    CHECK(part, "usage: %s DIR PART", argv[0]);
    tree_root = getpid();
    part->set_up();
    guest_ready();
    while (!guest_finishing()) {
        part->step();
        guest_step();
        guest_sleep_ms_eintr(10);
    }
    CHECK(getpid() == tree_root, "the root's pid was %d and is %d", tree_root, getpid());
    part->finish();
    CHECK(waitpid(-1, NULL, WNOHANG | __WALL) == -1 && errno == ECHILD, "the root has a child too many");
    guest_ok();
}

/* -- where a process stands --------------------------------------------------------------------------------------------------- */

/* Group and session are 0 where they are the root's, which may have others after a restore. */
struct standing {
    pid_t pid, ppid, pgid, sid;
};

static struct standing standing_of(pid_t pid) {
    struct standing standing = {.pid = pid, .ppid = pid == getpid() ? getppid() : 0, .pgid = MUST(getpgid(pid)), .sid = MUST(getsid(pid))};
    if (standing.pgid == getpgid(tree_root)) standing.pgid = 0;
    if (standing.sid == getsid(tree_root)) standing.sid = 0;
    return standing;
}

UNUSED static void standing_check(const char *who, const struct standing *was) {
    struct standing is = standing_of(getpid());
    CHECK(was->pid == is.pid && was->ppid == is.ppid && was->pgid == is.pgid && was->sid == is.sid,
          "%s: pid %d ppid %d pgid %d sid %d became pid %d ppid %d pgid %d sid %d (0: the root's)", who, was->pid, was->ppid,
          was->pgid, was->sid, is.pid, is.ppid, is.pgid, is.sid);
}

/* -- memory that changes ------------------------------------------------------------------------------------------------------ */

struct pattern {
    char *at;
    size_t pages;
    uint64_t *seed, rng;
};

UNUSED static struct pattern pattern_make(size_t pages, uint64_t rng) {
    struct pattern pattern = {mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), pages,
                              calloc(pages, sizeof(uint64_t)), rng};
    CHECK(pattern.at != MAP_FAILED && pattern.seed, "memory for a pattern: %s", strerror(errno));
    return pattern;
}

UNUSED static void pattern_write(struct pattern *pattern, size_t page) {
    pattern->seed[page] = random_next(&pattern->rng) | 1;
    page_fill(pattern->at + page * PAGE, pattern->seed[page]);
}

UNUSED static void pattern_change(struct pattern *pattern, size_t count) {
    while (count--) pattern_write(pattern, random_below(&pattern->rng, pattern->pages));
}

UNUSED static void pattern_check(const struct pattern *pattern, const char *who, int number) {
    for (size_t page = 0; page < pattern->pages; page++) {
        long differs = page_difference(pattern->at + page * PAGE, pattern->seed[page]);
        CHECK(differs < 0, "%s %d (pid %d): page %zu of %zu (%p) differs at byte %ld", who, number, getpid(), page, pattern->pages,
              (void *)(pattern->at + page * PAGE), differs);
    }
}

/* -- pipes -------------------------------------------------------------------------------------------------------------------- */

static void pipe_make(int ends[2]) { MUST(pipe2(ends, O_CLOEXEC)); }

/* No handler without SA_RESTART is ever installed: an interrupted call is what somebody else made of it. */
UNUSED static void pipe_put(int fd, const void *bytes, size_t size) {
    ssize_t put = write(fd, bytes, size);
    CHECK(put == (ssize_t)size, "pid %d: write to a pipe (fd %d): %zd, %s", getpid(), fd, put, strerror(errno));
}

UNUSED static void pipe_get(int fd, void *bytes, size_t size) {
    ssize_t got = read(fd, bytes, size);
    CHECK(got == (ssize_t)size, "pid %d: read from a pipe (fd %d): %zd, %s", getpid(), fd, got, got < 0 ? strerror(errno) : "");
}

UNUSED static bool pipe_has_data(int fd, int ms) { return poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, ms) == 1; }

/* -- workers ------------------------------------------------------------------------------------------------------------------ */

struct worker {
    pid_t pid;
    int orders, answers; /* the root's ends; in the worker its own */
};

static struct worker worker_self; /* in a worker */

/* True for a step, false when it is to finish. */
UNUSED static bool worker_order(void) {
    char order = 0;
    pipe_get(worker_self.orders, &order, 1);
    return order == 's';
}

UNUSED static void worker_answer(void) { pipe_put(worker_self.answers, "!", 1); }

struct worker_pipes {
    int orders[2], answers[2];
};

UNUSED static struct worker_pipes worker_pipes(void) {
    struct worker_pipes pipes;
    pipe_make(pipes.orders);
    pipe_make(pipes.answers);
    return pipes;
}

UNUSED static void worker_begin(const struct worker_pipes *pipes) {
    worker_self = (struct worker){getpid(), pipes->orders[0], pipes->answers[1]};
    MUST(close(pipes->orders[1]));
    MUST(close(pipes->answers[0]));
}

UNUSED static struct worker worker_made(const struct worker_pipes *pipes, pid_t pid) {
    MUST(close(pipes->orders[0]));
    MUST(close(pipes->answers[1]));
    struct worker worker = {pid, pipes->orders[1], pipes->answers[0]};
    char ready;
    pipe_get(worker.answers, &ready, 1);
    return worker;
}

/* Forks a process that runs `body`, which answers once when it is set up; with flags for clone(2), exit signal included, that
 * do not share memory. */
UNUSED static struct worker worker_clone(unsigned long flags, void (*body)(int), int number) {
    struct worker_pipes pipes = worker_pipes();
    /* What the C library does for a new process is only done by fork(). */
    pid_t pid = MUST(flags == SIGCHLD ? fork() : (pid_t)syscall(SYS_clone, flags, NULL, NULL, NULL, 0UL));
    if (pid == 0) {
        if (flags & CLONE_FILES) worker_self = (struct worker){getpid(), pipes.orders[0], pipes.answers[1]};
        else worker_begin(&pipes);
        body(number);
        guest_fail("pid %d: a worker's body returned", getpid());
    }
    if (flags & CLONE_FILES) {
        struct worker worker = {pid, pipes.orders[1], pipes.answers[0]};
        char ready;
        pipe_get(worker.answers, &ready, 1);
        return worker;
    }
    return worker_made(&pipes, pid);
}

UNUSED static struct worker worker_start(void (*body)(int), int number) { return worker_clone(SIGCHLD, body, number); }

UNUSED static void worker_step(const struct worker *worker) {
    char answer = 0;
    pipe_put(worker->orders, "s", 1);
    pipe_get(worker->answers, &answer, 1);
    CHECK(answer == '!', "worker %d answers %d", worker->pid, answer);
}

UNUSED static void worker_finish(const struct worker *worker) { pipe_put(worker->orders, "f", 1); }

UNUSED static void worker_expect(pid_t pid, int code) {
    int status = 0;
    pid_t ended = waitpid(pid, &status, __WALL);
    CHECK(ended == pid, "waitpid(%d): %d, %s", pid, ended, strerror(errno));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == code, "pid %d ended with status %#x instead of exit code %d", pid, status, code);
}

UNUSED static void worker_end(const struct worker *worker, int code) {
    worker_finish(worker);
    worker_expect(worker->pid, code);
}

/* -- handlers that count ------------------------------------------------------------------------------------------------------ */

static volatile sig_atomic_t signals_seen[_NSIG];

static void signal_count(int number) { signals_seen[number]++; }

UNUSED static void signal_watch(int number) {
    struct sigaction action = {.sa_handler = signal_count, .sa_flags = SA_RESTART};
    MUST(sigaction(number, &action, NULL));
}

/* Waits until the signal was seen so often, and then a little longer for one too many. */
UNUSED static void signal_expect(const char *who, int number, int count) {
    for (int i = 0; i < 400 && signals_seen[number] < count; i++) guest_sleep_ms_eintr(5);
    guest_sleep_ms_eintr(count ? 10 : 0);
    CHECK(signals_seen[number] == count, "%s (pid %d): %s was seen %d times, not %d", who, getpid(), strsignal(number),
          (int)signals_seen[number], count);
}

#endif
