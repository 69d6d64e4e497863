/*
 * Interrupted system calls: threads in every kind of wait. None may see EINTR, end early, or start over.
 *
 *   sleeps DIR [--also-sigtimedwait]
 *
 * A relative wait counts the time in which the job runs: what is left at the checkpoint is left after the restore. An absolute
 * wait ends at its time, or at once if that passed meanwhile. How long the job has run is measured by a thread that wakes every
 * 5 ms: a longer gap than 0.5 s is time in which the job was dead.
 *
 * sigtimedwait is not among the waits by default: the kernel itself ends it with EINTR when the job is merely stopped (signal(7)).
 */
#include "guest.h"
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/select.h>
#include <sys/syscall.h>

static volatile bool stopping, measuring_stops;
static _Atomic uint64_t running_ns, gaps, measured_until;

static void *measure(void *unused) {
    uint64_t last = measured_until;
    while (!measuring_stops) {
        guest_sleep_ms(5);
        uint64_t now = guest_now_ns(CLOCK_MONOTONIC);
        if (now - last > 500000000) gaps++;
        else running_ns += now - last;
        measured_until = last = now;
    }
    return unused;
}

/* Until everything before now is in running_ns and gaps. */
static void await_measurement(void) {
    for (uint64_t now = guest_now_ns(CLOCK_MONOTONIC); measured_until < now;) guest_sleep_ms(2);
}

/* -- the waits: each returns 0 if the call said what it must ---------------------------------------------------------------------- */

static int data_pipe[2]; /* never holds data */
static sem_t never_posted;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t never_signalled = PTHREAD_COND_INITIALIZER, never_signalled_monotonic;
static uint32_t futex_word = 5;

static struct timespec span(long ms) { return (struct timespec){ms / 1000, ms % 1000 * 1000000}; }

static struct timespec after(clockid_t clock, long ms) {
    uint64_t end = guest_now_ns(clock) + (uint64_t)ms * 1000000;
    return (struct timespec){(time_t)(end / 1000000000), (long)(end % 1000000000)};
}

static int by_nanosleep(long ms) {
    struct timespec time = span(ms), left = {-1, -1};
    return nanosleep(&time, &left) == 0 ? 0 : errno;
}
static int by_clock_nanosleep(long ms) {
    struct timespec time = span(ms);
    return clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);
}
static int by_clock_nanosleep_boot(long ms) {
    struct timespec time = span(ms);
    return clock_nanosleep(CLOCK_BOOTTIME, 0, &time, NULL);
}
static int by_clock_nanosleep_until(long ms) {
    struct timespec time = after(CLOCK_MONOTONIC, ms);
    return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
}
static int by_clock_nanosleep_until_real(long ms) {
    struct timespec time = after(CLOCK_REALTIME, ms);
    return clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &time, NULL);
}
static int by_poll(long ms) {
    struct pollfd fd = {data_pipe[0], POLLIN, 0};
    int got = poll(&fd, 1, (int)ms);
    return got == 0 ? 0 : got < 0 ? errno : -1;
}
static int by_ppoll(long ms) {
    struct timespec time = span(ms);
    struct pollfd fd = {data_pipe[0], POLLIN, 0};
    sigset_t mask;
    sigfillset(&mask);
    int got = ppoll(&fd, 1, &time, &mask);
    return got == 0 ? 0 : got < 0 ? errno : -1;
}
static int by_select(long ms) {
    struct timeval time = {ms / 1000, ms % 1000 * 1000};
    fd_set set;
    FD_ZERO(&set);
    FD_SET(data_pipe[0], &set);
    int got = select(data_pipe[0] + 1, &set, NULL, NULL, &time);
    return got == 0 ? 0 : got < 0 ? errno : -1;
}
static int by_pselect(long ms) {
    struct timespec time = span(ms);
    sigset_t mask;
    sigfillset(&mask);
    int got = pselect(0, NULL, NULL, NULL, &time, &mask);
    return got == 0 ? 0 : got < 0 ? errno : -1;
}
static int by_futex(long ms) {
    struct timespec time = span(ms);
    long got = syscall(SYS_futex, &futex_word, FUTEX_WAIT_PRIVATE, 5, &time, NULL, 0);
    return got == -1 && errno == ETIMEDOUT ? 0 : got == 0 ? -1 : errno;
}
static int by_futex_until(long ms) {
    struct timespec time = after(CLOCK_MONOTONIC, ms);
    long got = syscall(SYS_futex, &futex_word, FUTEX_WAIT_BITSET_PRIVATE, 5, &time, NULL, FUTEX_BITSET_MATCH_ANY);
    return got == -1 && errno == ETIMEDOUT ? 0 : got == 0 ? -1 : errno;
}
static int by_sem_timedwait(long ms) {
    struct timespec time = after(CLOCK_REALTIME, ms);
    return sem_timedwait(&never_posted, &time) == -1 && errno == ETIMEDOUT ? 0 : errno;
}
static int by_cond(pthread_cond_t *cond, clockid_t clock, long ms) {
    struct timespec time = after(clock, ms);
    MUST0(pthread_mutex_lock(&lock));
    int got = pthread_cond_timedwait(cond, &lock, &time);
    MUST0(pthread_mutex_unlock(&lock));
    return got == ETIMEDOUT ? 0 : got ? got : -1;
}
static int by_cond_timedwait(long ms) { return by_cond(&never_signalled, CLOCK_REALTIME, ms); }
static int by_cond_timedwait_monotonic(long ms) { return by_cond(&never_signalled_monotonic, CLOCK_MONOTONIC, ms); }
static int by_sigtimedwait(long ms) {
    struct timespec time = span(ms);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMAX);
    int got = sigtimedwait(&set, NULL, &time);
    return got == -1 && errno == EAGAIN ? 0 : got < 0 ? errno : -1;
}

static const struct wait {
    const char *name;
    int (*call)(long ms);
    long ms;
    bool absolute;
} waits[] = {
    {"nanosleep", by_nanosleep, 3000, false},
    {"nanosleep, short", by_nanosleep, 7, false},
    {"clock_nanosleep monotonic", by_clock_nanosleep, 2900, false},
    {"clock_nanosleep boottime", by_clock_nanosleep_boot, 3100, false},
    {"clock_nanosleep until, monotonic", by_clock_nanosleep_until, 2700, true},
    {"clock_nanosleep until, realtime", by_clock_nanosleep_until_real, 2600, true},
    {"poll", by_poll, 3050, false},
    {"ppoll", by_ppoll, 2950, false},
    {"select", by_select, 3150, false},
    {"pselect", by_pselect, 2850, false},
    {"futex wait", by_futex, 3020, false},
    {"futex wait until", by_futex_until, 2800, true},
    {"sem_timedwait", by_sem_timedwait, 2500, true},
    {"pthread_cond_timedwait", by_cond_timedwait, 2550, true},
    {"pthread_cond_timedwait monotonic", by_cond_timedwait_monotonic, 2650, true},
    {"sigtimedwait", by_sigtimedwait, 2750, false},
};

/* Late by more than this, or early by more than EARLY, is wrong. Time dead is not counted; each gap may hide half a second. */
#define LATE 700e6
#define EARLY 60e6

static void *wait_again_and_again(void *argument) {
    const struct wait *wait = argument;
    double wanted = (double)wait->ms * 1e6;
    while (!stopping) {
        await_measurement();
        uint64_t run_before = running_ns, gaps_before = gaps, clock_before = guest_now_ns(CLOCK_MONOTONIC);
        int error = wait->call(wait->ms);
        double clock = (double)(guest_now_ns(CLOCK_MONOTONIC) - clock_before);
        CHECK(error == 0, "%s gave %s", wait->name, error < 0 ? "success" : strerror(error));
        await_measurement();
        double run = (double)(running_ns - run_before), gap = (double)(gaps - gaps_before);
        CHECK(clock > wanted - EARLY, "%s of %ld ms ended after %.0f ms", wait->name, wait->ms, clock / 1e6);
        if (!wait->absolute) {
            CHECK(run > wanted - EARLY - gap * 500e6, "%s of %ld ms ended after only %.0f ms of running", wait->name, wait->ms, run / 1e6);
            CHECK(run < wanted + LATE + gap * 500e6, "%s of %ld ms took %.0f ms of running: it has started over", wait->name, wait->ms,
                  run / 1e6);
        } else if (gap == 0) {
            CHECK(clock < wanted + LATE, "%s of %ld ms took %.0f ms", wait->name, wait->ms, clock / 1e6);
        } else {
            CHECK(run < wanted + LATE, "%s of %ld ms took %.0f ms of running: it has started over", wait->name, wait->ms, run / 1e6);
        }
    }
    return NULL;
}

/* -- waits without an end, ended by main at last ----------------------------------------------------------------------------------- */

static int wake_pipe[2], full_pipe[2];
static sem_t posted_at_last;
static pthread_cond_t signalled_at_last = PTHREAD_COND_INITIALIZER;
static bool condition;
static volatile bool in_pause, in_suspend;
static volatile int usr1, usr2;

static void on_usr(int number) {
    if (number == SIGUSR1) usr1++;
    else usr2++;
}

static void *in_read(void *unused) {
    char byte = 0;
    ssize_t got = read(wake_pipe[0], &byte, 1);
    CHECK(got == 1 && byte == 'x', "the blocking read gave %zd (%s), byte %d", got, strerror(errno), byte);
    return unused;
}
static void *in_write(void *unused) {
    ssize_t put = write(full_pipe[1], "y", 1);
    CHECK(put == 1, "the blocking write gave %zd (%s)", put, strerror(errno));
    return unused;
}
static void *in_poll(void *unused) {
    struct pollfd fd = {wake_pipe[0], POLLHUP, 0};
    int got = poll(&fd, 1, -1);
    CHECK(got == 1 && fd.revents & POLLHUP, "the endless poll gave %d (%s), events %x", got, strerror(errno), fd.revents);
    return unused;
}
static void *in_sem_wait(void *unused) {
    MUST(sem_wait(&posted_at_last));
    return unused;
}
static void *in_cond_wait(void *unused) {
    MUST0(pthread_mutex_lock(&lock));
    while (!condition) MUST0(pthread_cond_wait(&signalled_at_last, &lock));
    MUST0(pthread_mutex_unlock(&lock));
    return unused;
}
static void *in_pause_call(void *unused) {
    sigset_t mask;
    sigfillset(&mask);
    sigdelset(&mask, SIGUSR1);
    MUST0(pthread_sigmask(SIG_SETMASK, &mask, NULL));
    in_pause = true;
    int got = pause();
    CHECK(got == -1 && errno == EINTR && usr1 == 1, "pause ended with %d handled signals", usr1);
    return unused;
}
static void *in_sigsuspend(void *unused) {
    sigset_t mask, now;
    sigfillset(&mask);
    sigdelset(&mask, SIGUSR2);
    in_suspend = true;
    int got = sigsuspend(&mask);
    CHECK(got == -1 && errno == EINTR && usr2 == 1, "sigsuspend ended with %d handled signals", usr2);
    MUST0(pthread_sigmask(SIG_BLOCK, NULL, &now));
    CHECK(sigismember(&now, SIGUSR2) == 1 && sigismember(&now, SIGHUP) == 0, "sigsuspend left the mask %lx", *(unsigned long *)&now);
    return unused;
}

int main(int argc, char **argv) {
    static void *(*const endless[])(void *) = {in_read, in_write, in_poll, in_sem_wait, in_cond_wait, in_pause_call, in_sigsuspend};
    guest_start(argc, argv);
    bool also_sigtimedwait = guest_option(argc, argv, "also-sigtimedwait", 0);
    pthread_t thread[ARRAY_LEN(waits)], endless_thread[ARRAY_LEN(endless)], measuring;
    pthread_condattr_t monotonic;
    sigset_t usual;
    MUST(pipe2(data_pipe, O_CLOEXEC));
    MUST(pipe2(wake_pipe, O_CLOEXEC));
    MUST(pipe2(full_pipe, O_CLOEXEC));
    MUST(fcntl(full_pipe[1], F_SETFL, O_NONBLOCK));
    char page[PAGE] = {0};
    while (write(full_pipe[1], page, PAGE) == (ssize_t)PAGE) {}
    MUST(fcntl(full_pipe[1], F_SETFL, 0));
    MUST(sem_init(&never_posted, 0, 0));
    MUST(sem_init(&posted_at_last, 0, 0));
    MUST0(pthread_condattr_init(&monotonic));
    MUST0(pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC));
    MUST0(pthread_cond_init(&never_signalled_monotonic, &monotonic));
    struct sigaction action = {.sa_handler = on_usr};
    MUST(sigaction(SIGUSR1, &action, NULL));
    MUST(sigaction(SIGUSR2, &action, NULL));
    sigemptyset(&usual);
    sigaddset(&usual, SIGUSR1);
    sigaddset(&usual, SIGUSR2);
    sigaddset(&usual, SIGRTMAX);
    MUST0(pthread_sigmask(SIG_BLOCK, &usual, NULL));

    measured_until = guest_now_ns(CLOCK_MONOTONIC);
    MUST0(pthread_create(&measuring, NULL, measure, NULL));
    size_t count = ARRAY_LEN(waits) - (also_sigtimedwait ? 0 : 1);
    for (size_t i = 0; i < count; i++) MUST0(pthread_create(&thread[i], NULL, wait_again_and_again, (void *)&waits[i]));
    for (size_t i = 0; i < ARRAY_LEN(endless); i++) MUST0(pthread_create(&endless_thread[i], NULL, endless[i], NULL));
    while (!in_pause || !in_suspend) guest_sleep_ms(1);
    guest_sleep_ms(50);
    guest_ready();
    while (!guest_finishing()) {
        guest_step();
        guest_sleep_ms(10);
    }
    MUST0(pthread_kill(endless_thread[5], SIGUSR1));
    MUST0(pthread_kill(endless_thread[6], SIGUSR2));
    CHECK(write(wake_pipe[1], "x", 1) == 1, "write to the pipe: %s", strerror(errno));
    MUST0(pthread_join(endless_thread[0], NULL));
    MUST(close(wake_pipe[1]));
    CHECK(read(full_pipe[0], page, PAGE) == (ssize_t)PAGE, "read from the full pipe: %s", strerror(errno));
    MUST(sem_post(&posted_at_last));
    MUST0(pthread_mutex_lock(&lock));
    condition = true;
    MUST0(pthread_cond_signal(&signalled_at_last));
    MUST0(pthread_mutex_unlock(&lock));
    for (size_t i = 1; i < ARRAY_LEN(endless); i++) MUST0(pthread_join(endless_thread[i], NULL));
    stopping = true; /* each wait that is under way is still judged */
    for (size_t i = 0; i < count; i++) MUST0(pthread_join(thread[i], NULL));
    measuring_stops = true;
    MUST0(pthread_join(measuring, NULL));
    guest_ok();
}
