/*
 * Threads and processes under seccomp.
 *
 *   seccomp DIR KIND [--user]
 *
 *   shared     a chain of three filters that all threads share; at the end all of them still follow a fourth
 *   own        threads with filters of their own on top of a common one, and one with fewer
 *   deadly     everything is deadly but what the guest itself does: also what cr would have it do
 *   strict     a thread in strict mode
 *   process    a child in strict mode, alone in its process
 *   refused.*  what cr must refuse: no-return, supervised
 *   exec       executes the program that follows, under a filter
 *
 * --user gives root up first. Which filters are in force is seen by the calls that they forbid, each with an error of its own.
 */
#include "guest.h"
#include <grp.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define WORKERS 3

static const char *kind;
static volatile bool begin, stop;
static struct worker {
    pthread_t thread;
    pid_t tid;
    volatile uint64_t rounds;
    volatile bool ready, done;
    char status[3][64];
} workers[WORKERS];
static int ask[2], answer[2];

static bool is(const char *name) { return strcmp(kind, name) == 0; }

/* -- filters ------------------------------------------------------------------------------------------------------------------ */

static void install(struct sock_filter *code, size_t length, unsigned flags) {
    struct sock_fprog program = {(unsigned short)length, code};
    long failed = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
    if (failed) guest_fail("installing a filter: %s", failed > 0 ? "a thread does not follow" : strerror(errno));
}

/* Answers call `number` with `error`, and allows all else. */
static void forbid(int number, int error, unsigned flags) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    install(code, ARRAY_LEN(code), flags);
}

/* Ends the process on call `number`. */
static void deadly(int number) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    install(code, ARRAY_LEN(code), 0);
}

/* Ends the process on every call that the rest of this program does not make. */
static void deadly_but_own(void) {
    static const int own[] = {SYS_truncate, SYS_access,     SYS_clock_nanosleep, SYS_nanosleep, SYS_symlink,    SYS_exit_group,
                              SYS_openat,   SYS_read,       SYS_write,           SYS_close,     SYS_getpid,     SYS_gettid,
                              SYS_getppid,  SYS_rt_sigreturn, SYS_restart_syscall, SYS_getpgrp, SYS_newfstatat, SYS_futex};
    struct sock_filter code[ARRAY_LEN(own) + 6];
    size_t n = 0;
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (size_t i = 0; i < ARRAY_LEN(own); i++)
        code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)own[i], (unsigned char)(ARRAY_LEN(own) - i), 0);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    install(code, n, 0);
}

static void expect(const char *who, int number, int error) {
    errno = 0;
    long result = syscall(number, 0, 0, 0);
    CHECK(error ? result == -1 && errno == error : result >= 0, "%s: call %d gives %ld (%s), expected %s", who, number, result,
          strerror(errno), error ? strerror(error) : "success");
}

/* -- what is in force ------------------------------------------------------------------------------------------------------------ */

/* What /proc says of a thread: it must stay what it was. */
static void read_status(pid_t tid, char into[3][64]) {
    static const char *const names[] = {"\nSeccomp:", "\nSeccomp_filters:", "\nNoNewPrivs:"};
    char path[64], text[8192];
    snprintf(path, sizeof path, "/proc/%d/status", tid);
    guest_read_file(path, text, sizeof text);
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        const char *line = strstr(text, names[i]);
        CHECK(line, "no %s in %s", names[i] + 1, path);
        snprintf(into[i], 64, "%.*s", (int)strcspn(line + 1, "\n"), line + 1);
    }
}

static void compare_status(pid_t tid, char before[3][64]) {
    char now[3][64];
    read_status(tid, now);
    for (size_t i = 0; i < 3; i++) CHECK(strcmp(before[i], now[i]) == 0, "thread %d: was %s and is %s", tid, before[i], now[i]);
}

static void check_main(void) {
    if (is("shared")) {
        expect("main", SYS_getpgrp, 71);
        expect("main", SYS_getuid, 72);
        expect("main", SYS_getgid, 73);
    }
    if (is("own")) {
        expect("main", SYS_getpgrp, 71);
        expect("main", SYS_getuid, 0);
        expect("main", SYS_getgid, 74);
    }
    if (is("deadly")) expect("main", SYS_getpgrp, 75);
    if (is("strict")) expect("main", SYS_getpgrp, 0);
}

static void check_worker(int i) {
    if (is("shared")) {
        expect("worker", SYS_getpgrp, 71);
        expect("worker", SYS_getuid, 72);
        expect("worker", SYS_getgid, 73);
    }
    if (is("own")) {
        expect("worker", SYS_getpgrp, 71);
        expect("worker", SYS_getuid, i == 2 ? 0 : 80 + i);
        expect("worker", SYS_getgid, 0);
    }
}

static void *work(void *argument) {
    struct worker *self = argument;
    int i = (int)(self - workers);
    self->tid = (pid_t)syscall(SYS_gettid);
    if (is("own") && i < 2) forbid(SYS_getuid, 80 + i, 0);
    self->ready = true;
    while (!begin) guest_sleep_ms_eintr(1);
    while (!stop) {
        check_worker(i);
        self->rounds++;
        guest_sleep_ms_eintr(3);
    }
    check_worker(i);
    self->done = true;
    for (;;) guest_sleep_ms_eintr(1000);
    return NULL;
}

/* In strict mode: answers each byte with the next one, by nothing but read and write. */
__attribute__((noreturn)) static void echo(void) {
    MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT));
    for (;;) {
        unsigned char byte;
        long got = syscall(SYS_read, ask[0], &byte, 1);
        if (got < 0 && errno == EINTR) continue;
        if (got != 1) syscall(SYS_exit, 1);
        byte++;
        if (syscall(SYS_write, answer[1], &byte, 1) != 1) syscall(SYS_exit, 2);
    }
}

static void *strict_thread(void *argument) {
    struct worker *self = argument;
    self->tid = (pid_t)syscall(SYS_gettid);
    self->ready = true;
    echo();
}

static void check_echo(void) {
    unsigned char byte = (unsigned char)guest_steps, back = 0;
    CHECK(write(ask[1], &byte, 1) == 1, "asking: %s", strerror(errno));
    long got;
    while ((got = read(answer[0], &back, 1)) < 0 && errno == EINTR) {}
    CHECK(got == 1 && back == (unsigned char)(byte + 1), "%d was answered by %d (%ld)", byte, back, got);
}

static void wait_for(volatile bool *flag) {
    while (!*flag) guest_sleep_ms_eintr(1);
}

static void start(int count, void *(*function)(void *)) {
    for (int i = 0; i < count; i++) {
        MUST0(pthread_create(&workers[i].thread, NULL, function, &workers[i]));
        wait_for(&workers[i].ready);
    }
}

/* -- kinds -------------------------------------------------------------------------------------------------------------------- */

static int count;
static pid_t child;
static char own_status[3][64], child_status[3][64];

static void set_up(bool user) {
    if (user) {
        MUST(setgroups(0, NULL));
        MUST(setresgid(1002, 1002, 1002));
        MUST(setresuid(1001, 1001, 1001));
        MUST(prctl(PR_SET_DUMPABLE, 1));
        MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    }
    MUST(pipe(ask));
    MUST(pipe(answer));
    if (is("shared")) {
        forbid(SYS_getpgrp, 71, 0);
        start(count = WORKERS, work);
        forbid(SYS_getuid, 72, SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_LOG);
        forbid(SYS_getgid, 73, SECCOMP_FILTER_FLAG_TSYNC);
    } else if (is("own")) {
        forbid(SYS_getpgrp, 71, 0);
        start(count = WORKERS, work);
        forbid(SYS_getgid, 74, 0);
    } else if (is("deadly")) {
        forbid(SYS_getpgrp, 75, 0);
        deadly_but_own();
    } else if (is("strict")) {
        start(count = 1, strict_thread);
    } else if (is("process")) {
        child = MUST(fork());
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            echo();
        }
    } else if (is("refused.no-return")) {
        deadly(SYS_rt_sigreturn);
    } else if (is("refused.supervised")) {
        struct sock_filter code[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpgrp, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        install(code, ARRAY_LEN(code), 0);
    } else {
        guest_fail("unknown kind %s", kind);
    }
}

/* -- main --------------------------------------------------------------------------------------------------------------------- */

int main(int argc, char **argv) {
    if (argc >= 4 && strcmp(argv[2], "exec") == 0) {
        forbid(SYS_getpgrp, 71, 0);
        execv(argv[3], argv + 3);
        return 126;
    }
    guest_start(argc, argv);
    CHECK(argc >= 3, "usage: seccomp DIR KIND");
    kind = argv[2];
    set_up(guest_option(argc, argv, "user", 0));
    begin = true;
    if (is("strict") || is("process")) check_echo();
    if (!is("deadly")) guest_sleep_ms_eintr(20);
    read_status(getpid(), own_status);
    for (int i = 0; i < count; i++) read_status(workers[i].tid, workers[i].status);
    if (child) read_status(child, child_status);
    check_main();
    guest_ready();
    while (!guest_finishing()) {
        check_main();
        guest_step();
        if (is("strict") || is("process")) check_echo();
        guest_sleep_ms_eintr(5);
    }
    compare_status(getpid(), own_status);
    for (int i = 0; i < count; i++) compare_status(workers[i].tid, workers[i].status);
    if (child) compare_status(child, child_status);
    check_main();
    if (is("shared")) forbid(SYS_getsid, 76, SECCOMP_FILTER_FLAG_TSYNC); /* only where all share a chain */
    if (is("strict")) {
        /* It ends by the first call that strict mode does not allow: the pipe's end tells it to. */
        expect("main", SYS_getpgrp, 0);
    }
    uint64_t rounds[WORKERS];
    for (int i = 0; i < WORKERS; i++) rounds[i] = workers[i].rounds;
    if (is("shared") || is("own")) {
        guest_sleep_ms_eintr(50);
        for (int i = 0; i < count; i++) CHECK(workers[i].rounds > rounds[i], "worker %d stands still", i);
        stop = true;
        for (int i = 0; i < count; i++) wait_for(&workers[i].done);
    }
    if (child) {
        /* It may read, but not what read is followed by once the pipe has ended. */
        int state = 0;
        close(ask[1]);
        kill(child, SIGTERM);
        MUST(waitpid(child, &state, 0));
        CHECK(WIFSIGNALED(state) && WTERMSIG(state) == SIGTERM, "the child ended with %x", state);
    }
    guest_ok();
}
