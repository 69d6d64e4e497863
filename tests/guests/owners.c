/*
 * Who is signalled when something can be read, with which signal, and with whose rights.
 */
#include "guest.h"
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>

#ifndef F_GETOWNER_UIDS
#define F_GETOWNER_UIDS 17
#endif

static volatile sig_atomic_t signals, last_fd, last_code;
static volatile pid_t last_thread;
static pid_t other_thread;
static volatile int other_ready;

static void on_signal(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)context;
    last_fd = info->si_fd;
    last_code = info->si_code;
    last_thread = gettid();
    signals++;
}

static void *stay(void *unused) {
    other_thread = gettid();
    other_ready = 1;
    for (;;) pause();
    return unused;
}

static void own(int fd, enum __pid_type kind, pid_t number) {
    struct f_owner_ex owner = {kind, number};
    MUST(fcntl(fd, F_SETOWN_EX, &owner));
}

static void check(int fd, enum __pid_type kind, pid_t number, int signal, bool asynchronous, unsigned real, unsigned effective) {
    struct f_owner_ex owner;
    MUST(fcntl(fd, F_GETOWN_EX, &owner));
    CHECK(owner.type == kind && owner.pid == number, "fd %d: owner %d of kind %d", fd, owner.pid, owner.type);
    CHECK(fcntl(fd, F_GETSIG) == signal, "fd %d: signal %d", fd, fcntl(fd, F_GETSIG));
    CHECK(!!(fcntl(fd, F_GETFL) & O_ASYNC) == asynchronous, "fd %d: flags %o", fd, fcntl(fd, F_GETFL));
    unsigned users[2];
    if (fcntl(fd, F_GETOWNER_UIDS, users) == 0)
        CHECK(users[0] == real && users[1] == effective, "fd %d: rights of %u and %u", fd, users[0], users[1]);
}

static void check_signalled(int to, int from, pid_t thread) {
    int before = signals;
    MUST(write(to, "x", 1));
    for (int i = 0; i < 500 && signals == before; i++) guest_sleep_ms_eintr(2);
    CHECK(signals == before + 1, "fd %d: %d signals", from, signals - before);
    CHECK(last_fd == from && last_code == POLL_IN, "a signal of fd %d, code %d", last_fd, last_code);
    CHECK(!thread || last_thread == thread, "thread %d was signalled", last_thread);
    char byte;
    MUST(read(from, &byte, 1));
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    int signal = SIGRTMIN + 3;
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    MUST(sigaction(signal, &action, NULL));
    pthread_t thread;
    MUST0(pthread_create(&thread, NULL, stay, NULL));
    while (!other_ready) guest_sleep_ms(1);
    int process[2], group[2], by_thread[2], other[2], quiet[2];
    int (*all[])[2] = {&process, &group, &by_thread, &other, &quiet};
    for (size_t i = 0; i < ARRAY_LEN(all); i++) {
        MUST(pipe2(*all[i], O_NONBLOCK));
        MUST(fcntl((*all[i])[0], F_SETSIG, signal));
        MUST(fcntl((*all[i])[0], F_SETFL, O_ASYNC | O_NONBLOCK));
    }
    if (getpgrp() != getpid()) MUST(setpgid(0, 0));
    own(process[0], F_OWNER_PID, getpid());
    own(group[0], F_OWNER_PGRP, getpgrp());
    own(by_thread[0], F_OWNER_TID, other_thread);
    unsigned user = getuid();
    bool can = user == 0 && setresuid(1234, 2345, 0) == 0;
    own(other[0], F_OWNER_PID, getpid());
    if (can) MUST(setresuid(0, 0, 0));
    else guest_skip("other-user", "not root");
    /* An owner without O_ASYNC, and data that were there before. */
    own(quiet[0], F_OWNER_PID, getpid());
    MUST(fcntl(quiet[0], F_SETFL, O_NONBLOCK));
    MUST(write(quiet[1], "q", 1));
    guest_ready();
    while (!guest_finishing()) {
        guest_step();
        guest_sleep_ms_eintr(2);
    }
    CHECK(signals == 0, "%d signals before anything happened", signals);
    check(process[0], F_OWNER_PID, getpid(), signal, true, user, user);
    check(group[0], F_OWNER_PGRP, getpgrp(), signal, true, user, user);
    check(by_thread[0], F_OWNER_TID, other_thread, signal, true, user, user);
    check(other[0], F_OWNER_PID, getpid(), signal, true, can ? 1234 : user, can ? 2345 : user);
    check(quiet[0], F_OWNER_PID, getpid(), signal, false, user, user);
    check_signalled(process[1], process[0], 0);
    check_signalled(group[1], group[0], 0);
    check_signalled(by_thread[1], by_thread[0], other_thread);
    int before = signals;
    MUST(write(quiet[1], "q", 1));
    /* Its rights are those of somebody who may not signal us. */
    if (can) MUST(write(other[1], "x", 1));
    guest_sleep_ms_eintr(20);
    CHECK(signals == before, "a signal without O_ASYNC, or without the right to send it, from fd %d", last_fd);
    guest_ok();
}
