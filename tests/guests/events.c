/*
 * Kernel objects that are descriptors and have no name: event counters, timers, signals, epoll sets, pidfds.
 */
#include "guest.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

static int counter, semaphore, large, blocked_counter;
static int relative, absolute, periodic, expired, disarmed;
static int signals;
static int set, inner, dead_set, edge, once, pipes[3][2];
static int child_fd;
static pid_t child;
static uint64_t absolute_end, started;
static volatile int woken, epoll_woken;

static void *read_blocked(void *unused) {
    uint64_t value = 0;
    ssize_t got = read(blocked_counter, &value, sizeof value);
    woken = got == sizeof value && value == 7 ? 1 : 2;
    return unused;
}

static void *wait_blocked(void *unused) {
    struct epoll_event event;
    int got = epoll_wait(inner, &event, 1, -1);
    epoll_woken = got == 1 && event.data.u64 == 0x1234 ? 1 : 2;
    return unused;
}

static void watch(int in, int fd, uint32_t events, uint64_t data) {
    struct epoll_event event = {.events = events, .data.u64 = data};
    MUST(epoll_ctl(in, EPOLL_CTL_ADD, fd, &event));
}

static uint64_t ns(struct timespec time) { return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec; }
static struct timespec ts(uint64_t ns) { return (struct timespec){(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)}; }

static void arm(int fd, int flags, uint64_t first, uint64_t interval) {
    struct itimerspec time = {.it_value = ts(first), .it_interval = ts(interval)};
    MUST(timerfd_settime(fd, flags, &time, NULL));
}

static void set_up(void) {
    counter = MUST(eventfd(5, EFD_NONBLOCK));
    semaphore = MUST(eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC));
    large = MUST(eventfd(0, EFD_NONBLOCK));
    uint64_t much = 0x123456789abcdef0u;
    MUST(write(large, &much, sizeof much));
    blocked_counter = MUST(eventfd(0, 0));

    started = guest_now_ns(CLOCK_MONOTONIC);
    relative = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
    arm(relative, 0, 3600u * 1000000000ull, 0);
    absolute = MUST(timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK));
    absolute_end = guest_now_ns(CLOCK_REALTIME) + 7200u * 1000000000ull;
    arm(absolute, TFD_TIMER_ABSTIME, absolute_end, 0);
    periodic = MUST(timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK));
    arm(periodic, 0, 1000000000ull * 1800, 1000000000ull * 60);
    expired = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
    arm(expired, 0, 1000000, 1000000);
    usleep(20000);
    arm(expired, 0, 1000000, 0);
    usleep(10000); /* one tick, never read */
    disarmed = MUST(timerfd_create(CLOCK_MONOTONIC, 0));

    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR1);
    sigaddset(&mask, SIGRTMIN + 3);
    MUST0(pthread_sigmask(SIG_BLOCK, &mask, NULL));
    signals = MUST(signalfd(-1, &mask, SFD_NONBLOCK));
    MUST(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 4711}));

    set = MUST(epoll_create1(EPOLL_CLOEXEC));
    inner = MUST(epoll_create1(0));
    dead_set = MUST(epoll_create1(0));
    edge = MUST(epoll_create1(0));
    once = MUST(epoll_create1(0));
    for (int i = 0; i < 3; i++) MUST(pipe(pipes[i]));
    watch(set, counter, EPOLLIN, 1);
    watch(set, inner, EPOLLIN, 2);
    watch(set, relative, EPOLLIN, 3);
    watch(inner, pipes[0][0], EPOLLIN, 0x1234);
    /* One whose number was closed, and one whose number means something else now. */
    int closed = MUST(dup(pipes[1][0])), reused = MUST(dup(pipes[1][0]));
    watch(dead_set, closed, EPOLLIN, 11);
    watch(dead_set, reused, EPOLLIN, 12);
    MUST(close(closed));
    MUST(dup2(counter, reused));
    MUST(write(pipes[1][1], "x", 1));
    watch(edge, pipes[2][0], EPOLLIN | EPOLLET, 21);
    watch(once, pipes[1][0], EPOLLIN | EPOLLONESHOT, 31);
    struct epoll_event event;
    CHECK(epoll_wait(once, &event, 1, 0) == 1 && epoll_wait(once, &event, 1, 0) == 0, "one-shot");

    child = MUST(fork());
    if (child == 0)
        for (;;) pause();
    child_fd = MUST((int)syscall(SYS_pidfd_open, child, 0));
}

static void expect_count(int fd, uint64_t wanted, const char *what) {
    uint64_t value = 0;
    CHECK(read(fd, &value, sizeof value) == sizeof value && value == wanted, "%s: %lx, not %lx", what, value, wanted);
}

static void check_timers(void) {
    struct itimerspec time;
    uint64_t passed = guest_now_ns(CLOCK_MONOTONIC) - started;
    MUST(timerfd_gettime(relative, &time));
    uint64_t left = ns(time.it_value), most = 3600u * 1000000000ull;
    CHECK(left < most && left + passed + 1000000000u >= most, "relative: %lu s left", left / 1000000000u);
    MUST(timerfd_gettime(absolute, &time));
    int64_t off = (int64_t)(guest_now_ns(CLOCK_REALTIME) + ns(time.it_value) - absolute_end);
    CHECK(off > -50000000 && off < 50000000, "absolute: off by %ld ns", off);
    MUST(timerfd_gettime(periodic, &time));
    CHECK(ns(time.it_interval) == 60000000000ull && ns(time.it_value) > 1000000000ull, "periodic");
    expect_count(expired, 1, "ticks");
    uint64_t value;
    CHECK(read(expired, &value, sizeof value) == -1 && errno == EAGAIN, "the timer expired again");
    MUST(timerfd_gettime(disarmed, &time));
    CHECK(ns(time.it_value) == 0, "a timer that was not armed is");
}

static void check_epolls(void) {
    struct epoll_event events[8];
    CHECK(epoll_wait(set, events, 8, 0) == 1 && events[0].data.u64 == 1, "the set tells something else");
    int found = MUST(epoll_wait(dead_set, events, 8, 0));
    uint64_t told = 0;
    for (int i = 0; i < found; i++) told |= 1u << (events[i].data.u64 - 11);
    CHECK(found == 2 && told == 3, "entries that outlived their numbers: %d, %lx", found, told);
    CHECK(epoll_wait(edge, events, 8, 0) == 0, "an edge out of nothing");
    MUST(write(pipes[2][1], "y", 1));
    CHECK(epoll_wait(edge, events, 8, 0) == 1 && events[0].data.u64 == 21, "no edge");
    CHECK(epoll_wait(edge, events, 8, 0) == 0, "the edge is told twice");
    CHECK(epoll_wait(once, events, 8, 0) == 0, "one-shot tells again");
    struct epoll_event again = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 32};
    MUST(epoll_ctl(once, EPOLL_CTL_MOD, pipes[1][0], &again));
    CHECK(epoll_wait(once, events, 8, 0) == 1 && events[0].data.u64 == 32, "one-shot cannot be armed again");
    MUST(write(pipes[0][1], "z", 1));
    CHECK(epoll_wait(set, events, 8, 1000) >= 1, "nested");
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    set_up();
    pthread_t reader, waiter;
    MUST0(pthread_create(&reader, NULL, read_blocked, NULL));
    MUST0(pthread_create(&waiter, NULL, wait_blocked, NULL));
    guest_ready();
    while (!guest_finishing()) {
        struct pollfd poll_child = {.fd = child_fd, .events = POLLIN};
        CHECK(poll(&poll_child, 1, 0) == 0, "the child has ended, says its pidfd");
        CHECK(woken == 0 && epoll_woken == 0, "a thread woke up early: %d %d", woken, epoll_woken);
        guest_step();
        guest_sleep_ms(2);
    }
    check_timers();
    struct signalfd_siginfo info;
    CHECK(read(signals, &info, sizeof info) == sizeof info && info.ssi_int == 4711, "the queued signal");
    CHECK(read(signals, &info, sizeof info) == -1 && errno == EAGAIN, "another signal");
    kill(getpid(), SIGUSR1);
    CHECK(read(signals, &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR1, "a new signal");
    check_epolls();
    expect_count(counter, 5, "counter");
    expect_count(semaphore, 1, "semaphore");
    expect_count(semaphore, 1, "semaphore");
    expect_count(semaphore, 1, "semaphore");
    uint64_t value;
    CHECK(read(semaphore, &value, sizeof value) == -1 && errno == EAGAIN, "a fourth unit");
    expect_count(large, 0x123456789abcdef0u, "large counter");
    value = 7;
    MUST(write(blocked_counter, &value, sizeof value));
    MUST0(pthread_join(reader, NULL));
    MUST0(pthread_join(waiter, NULL));
    CHECK(woken == 1 && epoll_woken == 1, "the blocked threads: %d %d", woken, epoll_woken);
    CHECK(fcntl(set, F_GETFD) == FD_CLOEXEC && fcntl(inner, F_GETFD) == 0, "close-on-exec");
    MUST((int)syscall(SYS_pidfd_send_signal, child_fd, SIGTERM, NULL, 0));
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM, "child: %x", status);
    guest_ok();
}
