/*
 * Interval timers and POSIX timers: they go on ticking, with the same ids, intervals and time left.
 *
 *   timers DIR
 */
#include "guest.h"
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>

#define LONG_SECONDS 1000

static volatile uint64_t ticks[65], thread_callbacks, wrong_thread, wrong_value;
static pid_t directed_tid;
static volatile bool stopping;

static void on_tick(int number) { ticks[number]++; }

static void on_info(int number, siginfo_t *info, void *context) {
    (void)context;
    ticks[number]++;
    if (info->si_code != SI_TIMER || info->si_value.sival_int != 7000 + number) wrong_value++;
    if (number == SIGRTMIN + 6 && syscall(SYS_gettid) != directed_tid) wrong_thread++;
}

static void on_thread_callback(union sigval value) {
    thread_callbacks++;
    if (value.sival_int != 4242) wrong_value++;
}

/* -- POSIX timers, by the kernel's ids ----------------------------------------------------------------------------------------- */

struct timer {
    const char *name;
    clockid_t clock;
    int notify, number; /* signal */
    long first_ms, interval_ms;
    bool absolute, ticks;
    int id;
};

enum { MONOTONIC, REAL, BOOT, PROCESS, THREAD, DIRECTED, NONE, PENDING, NEVER, EXPIRED, ABSOLUTE, TIMERS };

#define RT(n) (34 + (n)) /* SIGRTMIN is not a constant; glibc keeps 32 and 33 */
static struct timer timers[TIMERS] = {
    [MONOTONIC] = {"monotonic", CLOCK_MONOTONIC, SIGEV_SIGNAL, RT(1), 20, 20, false, true, -1},
    [REAL] = {"realtime", CLOCK_REALTIME, SIGEV_SIGNAL, RT(2), 5, 30, false, true, -1},
    [BOOT] = {"boottime", CLOCK_BOOTTIME, SIGEV_SIGNAL, RT(3), 5, 40, false, true, -1},
    [PROCESS] = {"process cpu", CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, RT(4), 20, 20, false, true, -1},
    [THREAD] = {"thread cpu", CLOCK_THREAD_CPUTIME_ID, SIGEV_SIGNAL, RT(5), 5, 5, false, true, -1},
    [DIRECTED] = {"directed to a thread", CLOCK_MONOTONIC, SIGEV_THREAD_ID, RT(6), 25, 25, false, true, -1},
    [NONE] = {"without signal", CLOCK_MONOTONIC, SIGEV_NONE, 0, LONG_SECONDS * 1000, 0, false, false, -1},
    [PENDING] = {"pending with overrun", CLOCK_MONOTONIC, SIGEV_SIGNAL, RT(7), 5, 5, false, false, -1},
    [NEVER] = {"never armed", CLOCK_MONOTONIC, SIGEV_SIGNAL, RT(8), 0, 0, false, false, -1},
    [EXPIRED] = {"expired", CLOCK_MONOTONIC, SIGEV_SIGNAL, RT(9), 1, 0, false, false, -1},
    [ABSOLUTE] = {"absolute", CLOCK_REALTIME, SIGEV_SIGNAL, RT(10), LONG_SECONDS * 1000, 0, true, false, -1},
};

static int create(const struct timer *timer) {
    int id;
    struct sigevent event = {.sigev_notify = timer->notify, .sigev_signo = timer->number, .sigev_value.sival_int = 7000 + timer->number};
    if (timer->notify == SIGEV_THREAD_ID) event._sigev_un._tid = directed_tid;
    MUST(syscall(SYS_timer_create, timer->clock, &event, &id));
    return id;
}

static void create_all(void) {
    for (int i = 0; i < TIMERS; i++) {
        struct timer *timer = &timers[i];
        int hole = create(&timers[NONE]); /* every second id is unused */
        timer->id = create(timer);
        MUST(syscall(SYS_timer_delete, hole));
        uint64_t first = (uint64_t)timer->first_ms * 1000000 + (timer->absolute ? guest_now_ns(timer->clock) : 0);
        struct itimerspec spec = {.it_value = {(time_t)(first / 1000000000), (long)(first % 1000000000)},
                                  .it_interval = {timer->interval_ms / 1000, timer->interval_ms % 1000 * 1000000}};
        MUST(syscall(SYS_timer_settime, timer->id, timer->absolute ? TIMER_ABSTIME : 0, &spec, NULL));
    }
}

static double left(int which) {
    struct itimerspec spec;
    MUST(syscall(SYS_timer_gettime, timers[which].id, &spec));
    long interval = spec.it_interval.tv_sec * 1000 + spec.it_interval.tv_nsec / 1000000;
    CHECK(interval == timers[which].interval_ms, "timer '%s' has an interval of %ld ms, had %ld", timers[which].name, interval,
          timers[which].interval_ms);
    return (double)spec.it_value.tv_sec + (double)spec.it_value.tv_nsec / 1e9;
}

/* -- how long the job has run: gaps (it was dead meanwhile) do not count --------------------------------------------------------- */

static double running_seconds, dead_seconds;
static long gaps;
static uint64_t last_seen, absolute_end;

static void measure(void) {
    uint64_t now = guest_now_ns(CLOCK_MONOTONIC);
    double seconds = (double)(now - last_seen) / 1e9;
    last_seen = now;
    if (seconds > 0.5) {
        gaps++;
        dead_seconds += seconds;
        seconds = 0.25; /* not known better */
    }
    running_seconds += seconds;
}

static void check_left(void) {
    double now = left(NONE), expected = LONG_SECONDS - running_seconds, tolerance = 0.5 + 0.5 * (double)gaps;
    CHECK(now > expected - tolerance && now < expected + tolerance,
          "a timer of %d s has %.3f s left after %.3f s of running (and %ld gaps)", LONG_SECONDS, now, running_seconds, gaps);
    double absolute = ((double)absolute_end - (double)guest_now_ns(CLOCK_REALTIME)) / 1e9;
    now = left(ABSOLUTE);
    /* The kernel tells the time left of a timer, and not that it had been set to a point in time: time dead is added. */
    CHECK(now > absolute - 0.2 && now < absolute + 0.2 + dead_seconds + 0.5 * (double)gaps, "an absolute timer has %.3f s left, expected %.3f", now, absolute);
    CHECK(left(NEVER) == 0 && left(EXPIRED) == 0, "a disarmed timer is armed");
    for (int i = 0; i < TIMERS; i++)
        if (timers[i].ticks || i == PENDING) CHECK(left(i) > 0, "timer '%s' is disarmed", timers[i].name);
}

static void check_interval(int which, long expected_us, const char *name) {
    struct itimerval value;
    MUST(getitimer(which, &value));
    CHECK(value.it_interval.tv_sec == 0 && value.it_interval.tv_usec == expected_us && (value.it_value.tv_usec || value.it_value.tv_sec),
          "%s has an interval of %ld us and %ld us left; the interval was %ld us", name, value.it_interval.tv_usec,
          value.it_value.tv_usec, expected_us);
}

static void check_pending(void) {
    sigset_t set;
    siginfo_t info;
    sigemptyset(&set);
    sigaddset(&set, RT(7));
    /* With a time limit it ends with EINTR at any stop of the process (signal(7)), and so at a checkpoint. */
    long got;
    do got = syscall(SYS_rt_sigtimedwait, &set, &info, &(struct timespec){2, 0}, 8);
    while (got < 0 && errno == EINTR);
    CHECK(got == RT(7), "the blocked timer signal is not pending: %s", strerror(errno));
    CHECK(info.si_code == SI_TIMER && info.si_timerid == timers[PENDING].id && info.si_value.sival_int == 7000 + RT(7),
          "the pending timer signal has code %d, timer %d, value %d; expected timer %d", info.si_code, info.si_timerid,
          info.si_value.sival_int, timers[PENDING].id);
    CHECK(info.si_overrun > 0, "the pending timer signal has no overrun");
    /* It must have been requeued by the timer, not only once by the restore. */
    do got = syscall(SYS_rt_sigtimedwait, &set, &info, &(struct timespec){2, 0}, 8);
    while (got < 0 && errno == EINTR);
    CHECK(got == RT(7), "the blocked timer does not fire again: %s", strerror(errno));
}

/* -- the story ---------------------------------------------------------------------------------------------------------------- */

static void *directed_thread(void *unused) {
    directed_tid = (pid_t)syscall(SYS_gettid);
    while (!stopping) guest_sleep_ms_eintr(5);
    return unused;
}

static void burn(long ms) {
    for (uint64_t end = guest_now_ns(CLOCK_MONOTONIC) + (uint64_t)ms * 1000000; guest_now_ns(CLOCK_MONOTONIC) < end;) {}
}

static void install(int number, bool info) {
    struct sigaction action = {.sa_flags = SA_RESTART | (info ? SA_SIGINFO : 0)};
    if (info) action.sa_sigaction = on_info;
    else action.sa_handler = on_tick;
    MUST(sigaction(number, &action, NULL));
}

static void check_ticking(void) {
    uint64_t seen[65], seen_callbacks = thread_callbacks;
    for (int i = 0; i < 65; i++) seen[i] = ticks[i];
    for (int round = 0; round < 200; round++) {
        bool all = thread_callbacks != seen_callbacks && ticks[SIGALRM] != seen[SIGALRM] && ticks[SIGVTALRM] != seen[SIGVTALRM] &&
                   ticks[SIGPROF] != seen[SIGPROF];
        for (int i = 0; i < TIMERS; i++)
            if (timers[i].ticks) all &= ticks[timers[i].number] != seen[timers[i].number];
        if (all) return;
        burn(10);
        guest_sleep_ms_eintr(10);
    }
    for (int i = 0; i < TIMERS; i++)
        CHECK(!timers[i].ticks || ticks[timers[i].number] != seen[timers[i].number], "timer '%s' no longer ticks", timers[i].name);
    CHECK(thread_callbacks != seen_callbacks, "the SIGEV_THREAD timer no longer calls");
    guest_fail("an interval timer no longer ticks: real %lu, virtual %lu, prof %lu more", ticks[SIGALRM] - seen[SIGALRM],
               ticks[SIGVTALRM] - seen[SIGVTALRM], ticks[SIGPROF] - seen[SIGPROF]);
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, RT(7));
    MUST0(pthread_sigmask(SIG_BLOCK, &blocked, NULL));
    for (int i = 0; i < TIMERS; i++)
        if (timers[i].number) install(timers[i].number, true);
    install(SIGALRM, false);
    install(SIGVTALRM, false);
    install(SIGPROF, false);

    pthread_t thread;
    MUST0(pthread_create(&thread, NULL, directed_thread, NULL));
    while (*(volatile pid_t *)&directed_tid == 0) guest_sleep_ms(1);
    create_all();
    absolute_end = guest_now_ns(CLOCK_REALTIME) + LONG_SECONDS * 1000000000UL;
    last_seen = guest_now_ns(CLOCK_MONOTONIC);
    timer_t calling;
    struct sigevent event = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = on_thread_callback, .sigev_value.sival_int = 4242};
    MUST(timer_create(CLOCK_MONOTONIC, &event, &calling));
    MUST(timer_settime(calling, 0, &(struct itimerspec){{0, 35000000}, {0, 35000000}}, NULL));
    MUST(setitimer(ITIMER_REAL, &(struct itimerval){{0, 50000}, {0, 50000}}, NULL));
    MUST(setitimer(ITIMER_VIRTUAL, &(struct itimerval){{0, 20000}, {0, 20000}}, NULL));
    MUST(setitimer(ITIMER_PROF, &(struct itimerval){{0, 30000}, {0, 30000}}, NULL));
    check_ticking();
    guest_ready();
    while (!guest_finishing()) {
        burn(3);
        guest_sleep_ms_eintr(10);
        measure();
        guest_step();
    }
    check_left();
    check_interval(ITIMER_REAL, 50000, "ITIMER_REAL");
    check_interval(ITIMER_VIRTUAL, 20000, "ITIMER_VIRTUAL");
    check_interval(ITIMER_PROF, 30000, "ITIMER_PROF");
    check_pending();
    check_ticking();
    CHECK(ticks[RT(8)] == 0 && ticks[RT(10)] == 0 && ticks[RT(9)] == 1, "one-shot timers fired %lu, %lu and %lu times, expected 0, 0 and 1",
          ticks[RT(8)], ticks[RT(10)], ticks[RT(9)]);
    CHECK(wrong_value == 0, "%lu timer signals had a wrong code or value", wrong_value);
    CHECK(wrong_thread == 0, "%lu signals went to another thread", wrong_thread);
    int fresh = create(&timers[NEVER]);
    for (int i = 0; i < TIMERS; i++) CHECK(fresh != timers[i].id, "a new timer has the id %d of timer '%s'", fresh, timers[i].name);
    stopping = true;
    MUST0(pthread_join(thread, NULL));
    guest_ok();
}
