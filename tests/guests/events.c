/*
 * Descriptors of kernel objects without a name, but for epoll sets (epolls.c): counters, timers, signals, watches of files, pidfds,
 * namespaces, files of /proc.
 *
 *   events DIR
 */
#include "guest.h"
#include <dirent.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

#define SECOND 1000000000ull
#define HOUR (3600 * SECOND)

/* Time in which the job ran: gaps of more than half a second are those in which it was dead. */
static uint64_t ran, last_look;

static void look_at_the_time(void) {
    uint64_t now = guest_now_ns(CLOCK_MONOTONIC);
    if (last_look && now - last_look < SECOND / 2) ran += now - last_look;
    last_look = now;
}

/* The value behind a key of /proc/self/fdinfo/FD. */
static const char *info(int fd, const char *key) {
    static char text[1 << 16];
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    guest_read_file(path, text, sizeof text);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        if (strncmp(line, key, strlen(key)) == 0) return line + strlen(key) + strspn(line + strlen(key), " \t");
    guest_fail("fd %d has no \"%s\" in its fdinfo", fd, key);
}

static void check_flags(int fd, int flags, const char *what) {
    int is = MUST(fcntl(fd, F_GETFL));
    CHECK((is & (O_ACCMODE | O_NONBLOCK | O_APPEND)) == flags, "%s: flags are %o, expected %o", what, is, flags);
}

/* -- eventfd -------------------------------------------------------------------------------------------------------------------- */

static int counter, counter_dup, semaphore, full_counter, zero_counter, answered;
static uint64_t counted, semaphores = 40, answers;
static pthread_t waiting_for_counter;

static void add(int fd, uint64_t n) { CHECK(write(fd, &n, 8) == 8, "write to eventfd %d: %s", fd, strerror(errno)); }

static uint64_t take(int fd, const char *what) {
    uint64_t n;
    CHECK(read(fd, &n, 8) == 8, "read of %s: %s", what, strerror(errno));
    return n;
}

static void *read_counter(void *unused) {
    answers = take(answered, "the counter of a blocked thread");
    return unused;
}

static void set_up_counters(void) {
    counter = MUST(eventfd(0, EFD_CLOEXEC));
    counter_dup = MUST(dup(counter));
    semaphore = MUST(eventfd((unsigned)semaphores, EFD_SEMAPHORE | EFD_NONBLOCK));
    full_counter = MUST(eventfd(0, EFD_NONBLOCK));
    add(full_counter, UINT64_MAX - 1);
    zero_counter = MUST(eventfd(0, EFD_NONBLOCK | EFD_SEMAPHORE));
    answered = MUST(eventfd(0, 0));
    MUST0(pthread_create(&waiting_for_counter, NULL, read_counter, NULL));
}

static void step_counters(void) {
    if (guest_steps % 3 == 0 && counted) {
        uint64_t is = take(counter, "the counter");
        CHECK(is == counted, "the counter was %lu, expected %lu", is, counted);
        counted = 0;
    }
    add(guest_steps % 2 ? counter : counter_dup, guest_steps + 7);
    counted += guest_steps + 7;
    CHECK(take(semaphore, "the semaphore") == 1, "the semaphore gave more than one");
    if (guest_steps % 2) add(semaphore, 2);
    semaphores += guest_steps % 2 ? 1 : -1ul;
}

static void check_counters(void) {
    check_flags(counter, O_RDWR, "eventfd");
    check_flags(semaphore, O_RDWR | O_NONBLOCK, "semaphore eventfd");
    uint64_t is = take(counter_dup, "the counter's duplicate"), more = 1;
    CHECK(is == counted, "the counter is %lu, expected %lu", is, counted);
    CHECK(write(full_counter, &more, 8) == -1 && errno == EAGAIN, "the full counter is not full");
    CHECK(take(full_counter, "the full counter") == UINT64_MAX - 1, "the full counter held something else");
    CHECK(read(zero_counter, &more, 8) == -1 && errno == EAGAIN, "the counter at zero gives something");
    for (; semaphores; semaphores--) CHECK(take(semaphore, "the semaphore") == 1, "the semaphore gave more than one");
    CHECK(read(semaphore, &more, 8) == -1 && errno == EAGAIN, "the semaphore gives too much");
    CHECK(answers == 0, "a blocked read of an eventfd has ended before its time");
    add(answered, 5);
    MUST0(pthread_join(waiting_for_counter, NULL));
    CHECK(answers == 5, "the blocked read of an eventfd gave %lu", answers);
}

/* -- timerfd -------------------------------------------------------------------------------------------------------------------- */

enum { RELATIVE, RELATIVE_BOOT, ABSOLUTE, ABSOLUTE_REAL, CANCELLED, TICKING, TICKED, EXPIRED, DISARMED, MANY, READ_OFTEN, BLOCKING, ALARM, TIMERS };
static struct timer {
    const char *name;
    clockid_t clock;
    int flags;
    uint64_t value, interval; /* nanoseconds; an absolute value is from now on */
    int fd;
    uint64_t start, end;
} timers[TIMERS] = {
    [RELATIVE] = {"relative", CLOCK_MONOTONIC, 0, HOUR, 0, 0, 0, 0},
    [RELATIVE_BOOT] = {"relative, boottime", CLOCK_BOOTTIME, 0, 2 * HOUR, HOUR, 0, 0, 0},
    [ABSOLUTE] = {"absolute", CLOCK_MONOTONIC, TFD_TIMER_ABSTIME, HOUR, 0, 0, 0, 0},
    [ABSOLUTE_REAL] = {"absolute, realtime", CLOCK_REALTIME, TFD_TIMER_ABSTIME, HOUR, 3 * SECOND, 0, 0, 0},
    [CANCELLED] = {"cancelled when the clock is set", CLOCK_REALTIME, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, HOUR, 0, 0, 0, 0},
    [TICKING] = {"absolute with a tick each 20 ms, never read", CLOCK_BOOTTIME, TFD_TIMER_ABSTIME, 1, 20000000, 0, 0, 0},
    [TICKED] = {"one tick, another in an hour", CLOCK_MONOTONIC, 0, 1, HOUR, 0, 0, 0},
    [EXPIRED] = {"expired", CLOCK_REALTIME, TFD_TIMER_ABSTIME, 1, 0, 0, 0, 0},
    [DISARMED] = {"disarmed", CLOCK_REALTIME, 0, 0, 0, 0, 0, 0},
    [MANY] = {"relative with a tick each 50 ms, never read", CLOCK_MONOTONIC, 0, 1, 50000000, 0, 0, 0},
    [READ_OFTEN] = {"relative with a tick each 40 ms", CLOCK_MONOTONIC, 0, 40000000, 40000000, 0, 0, 0},
    [BLOCKING] = {"blocking", CLOCK_MONOTONIC, 0, 100000000, 100000000, 0, 0, 0},
    [ALARM] = {"alarm", CLOCK_REALTIME_ALARM, 0, HOUR, 0, 0, 0, 0},
};
static uint64_t ticks_read, ticks_waited;
static volatile bool timers_stop;
static pthread_t waiting_for_timer;

static struct timespec span(uint64_t ns) { return (struct timespec){(time_t)(ns / SECOND), (long)(ns % SECOND)}; }
static uint64_t count(struct timespec time) { return (uint64_t)time.tv_sec * SECOND + (uint64_t)time.tv_nsec; }

static void *wait_for_timer(void *unused) {
    while (!timers_stop) ticks_waited += take(timers[BLOCKING].fd, "the timer of a blocked thread");
    return unused;
}

static void set_up_timers(void) {
    for (struct timer *timer = timers; timer < timers + TIMERS; timer++) {
        timer->fd = timerfd_create(timer->clock, timer == &timers[BLOCKING] ? 0 : TFD_NONBLOCK | TFD_CLOEXEC);
        if (timer->fd < 0 && timer == &timers[ALARM]) {
            guest_skip("timerfd-alarm", "timerfd_create: %s", strerror(errno));
            continue;
        }
        MUST(timer->fd);
        timer->start = ran;
        timer->end = guest_now_ns(timer->clock % 7 ? CLOCK_MONOTONIC : timer->clock) + timer->value;
        if (!timer->value) continue;
        struct itimerspec time = {span(timer->interval), span(timer->flags & TFD_TIMER_ABSTIME ? timer->end : timer->value)};
        MUST(timerfd_settime(timer->fd, timer->flags, &time, NULL));
    }
    guest_sleep_ms(2);
    MUST0(pthread_create(&waiting_for_timer, NULL, wait_for_timer, NULL));
}

static void step_timers(void) {
    uint64_t ticks;
    if (read(timers[READ_OFTEN].fd, &ticks, 8) == 8) ticks_read += ticks;
    else CHECK(errno == EAGAIN, "read of a timer: %s", strerror(errno));
}

static void check_ticks(uint64_t is, double expected, double slack, const char *name) {
    CHECK((double)is > expected - slack && (double)is < expected + slack, "timer %s: %lu ticks, expected %.1f", name, is, expected);
}

static void check_timers(void) {
    for (struct timer *timer = timers; timer < timers + TIMERS; timer++) {
        if (timer->fd < 0) continue;
        struct itimerspec time;
        check_flags(timer->fd, O_RDWR | (timer == &timers[BLOCKING] ? 0 : O_NONBLOCK), timer->name);
        CHECK(strtol(info(timer->fd, "clockid:"), NULL, 10) == timer->clock, "timer %s: clock %s", timer->name, info(timer->fd, "clockid:"));
        long flags = strtol(info(timer->fd, "settime flags:"), NULL, 8);
        CHECK(flags == timer->flags, "timer %s: set with flags %lo, expected %o", timer->name, flags, timer->flags);
        MUST(timerfd_gettime(timer->fd, &time));
        uint64_t left = count(time.it_value), now = guest_now_ns(timer->clock == CLOCK_REALTIME_ALARM ? CLOCK_REALTIME : timer->clock);
        CHECK(count(time.it_interval) == timer->interval, "timer %s: its interval is %lu ns", timer->name, count(time.it_interval));
        if (timer->value < HOUR) continue;
        if (timer->flags & TFD_TIMER_ABSTIME) {
            double off = (double)now + (double)left - (double)timer->end;
            CHECK(off > -30e6 && off < 30e6, "timer %s: its end has moved by %.3f ms", timer->name, off / 1e6);
        } else {
            double off = (double)timer->value - (double)left - (double)(ran - timer->start);
            CHECK(off > -300e6 && off < 1500e6, "timer %s: it has gone on for %.0f ms more than the job", timer->name, off / 1e6);
        }
    }
    struct timer *t = &timers[TICKING];
    uint64_t is = take(t->fd, t->name);
    check_ticks(is, (double)(guest_now_ns(t->clock) - t->end) / (double)t->interval + 0.5, 1.6, t->name);
    CHECK(take(timers[TICKED].fd, "a timer with one tick") == 1, "the timer that ticks each hour has other ticks than 1");
    CHECK(take(timers[EXPIRED].fd, "the expired timer") == 1, "the expired timer has other ticks than 1");
    CHECK(read(timers[EXPIRED].fd, &is, 8) == -1 && errno == EAGAIN, "the expired timer expires again");
    CHECK(read(timers[DISARMED].fd, &is, 8) == -1 && errno == EAGAIN, "the disarmed timer expires");
    CHECK(strcmp(info(timers[CANCELLED].fd, "ticks:"), "0") == 0, "the timer that is cancelled when the clock is set has ticks");
    double run = (double)(ran - timers[MANY].start);
    check_ticks(take(timers[MANY].fd, timers[MANY].name), run / 50e6, 12, timers[MANY].name);
    step_timers();
    check_ticks(ticks_read, run / 40e6, 15, timers[READ_OFTEN].name);
    check_ticks(ticks_waited, run / 100e6, 8, timers[BLOCKING].name);
    timers_stop = true;
    MUST0(pthread_join(waiting_for_timer, NULL));
}

/* -- signalfd ------------------------------------------------------------------------------------------------------------------- */

static int signals, waited_signals;
static volatile int signal_seen;
static pthread_t waiting_for_signal;

static void *read_signal(void *unused) {
    struct signalfd_siginfo signal;
    CHECK(read(waited_signals, &signal, sizeof signal) == sizeof signal, "the blocked read of a signalfd: %s", strerror(errno));
    CHECK(signal.ssi_signo == SIGUSR2 && signal.ssi_int == 77, "the blocked read of a signalfd gave signal %u", signal.ssi_signo);
    signal_seen = 1;
    return unused;
}

static void set_up_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN + 3);
    signals = MUST(signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    waited_signals = MUST(signalfd(-1, &set, 0));
    MUST(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 1001}));
    MUST(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 1002}));
    MUST0(pthread_create(&waiting_for_signal, NULL, read_signal, NULL));
}

static void check_signals(void) {
    struct signalfd_siginfo signal;
    check_flags(signals, O_RDWR | O_NONBLOCK, "signalfd");
    uint64_t mask = 1ull << (SIGUSR1 - 1) | 1ull << (SIGRTMIN + 2);
    CHECK(strtoul(info(signals, "sigmask:"), NULL, 16) == mask, "the signalfd has the mask %s", info(signals, "sigmask:"));
    for (int i = 1001; i <= 1002; i++)
        CHECK(read(signals, &signal, sizeof signal) == sizeof signal && signal.ssi_int == i, "the signalfd gave %d, expected %d", signal.ssi_int, i);
    CHECK(read(signals, &signal, sizeof signal) == -1 && errno == EAGAIN, "the signalfd gives a signal too many");
    CHECK(!signal_seen, "the blocked read of a signalfd has ended before its time");
    MUST(sigqueue(getpid(), SIGUSR2, (union sigval){.sival_int = 77}));
    MUST0(pthread_join(waiting_for_signal, NULL));
}

/* -- inotify -------------------------------------------------------------------------------------------------------------------- */

static int watches, wd_dir, wd_held, wd_file, wd_link, wd_once, held;
static char watches_before[8192], watches_after[8192];

static char *in_dir(const char *name) {
    static char path[PATH_MAX];
    return (char *)guest_path(path, name);
}

static void describe_watches(char *out, size_t size) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", watches);
    guest_read_file(path, out, size);
    char *lines = strstr(out, "inotify wd");
    CHECK(lines, "the inotify descriptor watches nothing");
    memmove(out, lines, strlen(lines) + 1);
}

static void set_up_watches(void) {
    close(MUST(open(in_dir("watched-file"), O_CREAT | O_WRONLY, 0600)));
    held = MUST(open(in_dir("held"), O_CREAT | O_RDWR, 0600));
    MUST(mkdir(in_dir("watched dir"), 0700));
    (void)!symlink("nowhere", in_dir("watched-link"));
    watches = MUST(inotify_init1(IN_NONBLOCK));
    for (int i = 0; i < 5; i++) MUST(inotify_rm_watch(watches, MUST(inotify_add_watch(watches, "/", IN_DELETE_SELF))));
    wd_dir = MUST(inotify_add_watch(watches, in_dir("watched dir"), IN_CREATE | IN_DELETE | IN_EXCL_UNLINK));
    wd_file = MUST(inotify_add_watch(watches, in_dir("watched-file"), IN_MODIFY | IN_ATTRIB));
    MUST(inotify_rm_watch(watches, MUST(inotify_add_watch(watches, "/", IN_DELETE_SELF))));
    wd_link = MUST(inotify_add_watch(watches, in_dir("watched-link"), IN_DELETE_SELF | IN_DONT_FOLLOW));
    wd_held = MUST(inotify_add_watch(watches, in_dir("held"), IN_OPEN | IN_CLOSE));
    wd_once = MUST(inotify_add_watch(watches, "/proc", IN_OPEN | IN_ONESHOT | IN_ONLYDIR | IN_ISDIR));
    MUST(inotify_rm_watch(watches, wd_once));
    wd_once = MUST(inotify_add_watch(watches, "/proc/sys", IN_DELETE | IN_ONESHOT));
    char ignored[4096];
    while (read(watches, ignored, sizeof ignored) > 0) {}
    MUST(fcntl(watches, F_SETFL, 0));
    describe_watches(watches_before, sizeof watches_before);
}

static void step_watches(void) {
    int unread = -1;
    MUST(ioctl(watches, FIONREAD, &unread));
    CHECK(unread == 0, "there are %d bytes of inotify events that nobody made", unread);
}

static void check_event(int wd, uint32_t mask, const char *name) {
    char buffer[4096];
    MUST(fcntl(watches, F_SETFL, O_NONBLOCK));
    ssize_t got = read(watches, buffer, sizeof buffer);
    const struct inotify_event *event = (void *)buffer;
    CHECK(got >= (ssize_t)sizeof *event, "no inotify event for watch %d: %s", wd, strerror(errno));
    CHECK(event->wd == wd && event->mask == mask, "an inotify event of watch %d, %x; expected %d, %x", event->wd, event->mask, wd, mask);
    CHECK(!name || (event->len && strcmp(event->name, name) == 0), "an inotify event of another file");
}

static int by_line(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static size_t sorted(char *text, char **lines, size_t most) {
    size_t n = 0;
    for (char *line = strtok(text, "\n"); line && n < most; line = strtok(NULL, "\n")) lines[n++] = line;
    qsort(lines, n, sizeof *lines, by_line);
    return n;
}

static void check_watches(void) {
    char *was[64], *is[64];
    step_watches();
    check_flags(watches, O_RDONLY, "inotify");
    describe_watches(watches_after, sizeof watches_after);
    size_t before = sorted(watches_before, was, 64), after = sorted(watches_after, is, 64);
    CHECK(before == after, "there were %zu watches and are %zu", before, after);
    for (size_t i = 0; i < before; i++) CHECK(strcmp(was[i], is[i]) == 0, "the watch was  %s  and is  %s", was[i], is[i]);
    close(MUST(open(in_dir("watched dir/new"), O_CREAT | O_WRONLY, 0600)));
    check_event(wd_dir, IN_CREATE, "new");
    MUST(chmod(in_dir("watched-file"), 0644));
    check_event(wd_file, IN_ATTRIB, NULL);
    MUST(unlink(in_dir("watched-link")));
    check_event(wd_link, IN_DELETE_SELF, NULL);
    int again = MUST(open(in_dir("held"), O_RDONLY));
    check_event(wd_held, IN_OPEN, NULL);
    close(again);
    int next = MUST(inotify_add_watch(watches, "/", IN_DELETE_SELF));
    CHECK(next > wd_once, "a new watch got the number %d", next);
}

/* -- pidfds, namespaces, files of /proc ------------------------------------------------------------------------------------------- */

static const char *const namespaces[] = {"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"};
static int self, self_dup, nobody, namespace[ARRAY_LEN(namespaces)], status, maps, meminfo, ostype, directory;
static long maps_at, meminfo_at;

static void set_up_proc(void) {
    char path[64], data[100];
    self = MUST((int)syscall(SYS_pidfd_open, getpid(), O_NONBLOCK));
    self_dup = MUST(fcntl(self, F_DUPFD, 300));
    pid_t child = MUST(fork());
    if (child == 0) _exit(3);
    nobody = MUST((int)syscall(SYS_pidfd_open, child, 0));
    MUST(waitpid(child, NULL, 0));
    for (size_t i = 0; i < ARRAY_LEN(namespaces); i++) {
        snprintf(path, sizeof path, "/proc/self/ns/%s", namespaces[i]);
        namespace[i] = MUST(open(path, O_RDONLY | (i % 2 ? O_CLOEXEC : 0)));
    }
    status = MUST(open("/proc/self/status", O_RDONLY | O_CLOEXEC));
    maps = MUST(open("/proc/self/maps", O_RDONLY));
    meminfo = MUST(open("/proc/meminfo", O_RDONLY));
    ostype = MUST(open("/proc/sys/kernel/ostype", O_RDONLY));
    directory = MUST(open("/proc/self", O_RDONLY | O_DIRECTORY));
    maps_at = MUST(read(maps, data, 73));
    meminfo_at = MUST(read(meminfo, data, 55));
}

static void step_proc(void) {
    char text[8192], wanted[32];
    ssize_t got = pread(status, text, sizeof text - 1, 0);
    CHECK(got > 0, "read of /proc/self/status: %s", strerror(errno));
    text[got] = 0;
    snprintf(wanted, sizeof wanted, "\nPid:\t%d\n", getpid());
    CHECK(strstr(text, wanted), "/proc/self/status is of another process");
    CHECK(strtol(info(self, "Pid:"), NULL, 10) == getpid(), "the pidfd is of process %s", info(self, "Pid:"));
}

static void check_proc(void) {
    step_proc();
    struct pollfd polled = {nobody, POLLIN, 0};
    siginfo_t child;
    check_flags(self, O_RDWR | O_NONBLOCK, "pidfd");
    MUST(fcntl(self_dup, F_SETFL, 0));
    check_flags(self, O_RDWR, "pidfd, by its duplicate");
    CHECK(fcntl(self, F_GETFD) == FD_CLOEXEC && fcntl(self_dup, F_GETFD) == 0, "the pidfds have other flags");
    MUST(syscall(SYS_pidfd_send_signal, self, 0, NULL, 0));
    CHECK(poll(&polled, 1, 0) == 1, "a pidfd of nobody is not ready");
    CHECK(syscall(SYS_pidfd_send_signal, nobody, 0, NULL, 0) == -1 && errno == ESRCH, "the pidfd of nobody is of somebody");
    CHECK(waitid((idtype_t)3 /* P_PIDFD */, (id_t)nobody, &child, WEXITED) == -1 && errno == ECHILD, "the pidfd of nobody can be waited for");
    for (size_t i = 0; i < ARRAY_LEN(namespaces); i++) {
        char path[64];
        struct stat held_open, own;
        snprintf(path, sizeof path, "/proc/self/ns/%s", namespaces[i]);
        MUST(stat(path, &own));
        MUST(fstat(namespace[i], &held_open));
        CHECK(own.st_dev == held_open.st_dev && own.st_ino == held_open.st_ino, "the namespace %s is another one", namespaces[i]);
        CHECK(fcntl(namespace[i], F_GETFD) == (i % 2 ? FD_CLOEXEC : 0), "namespace %s: close-on-exec differs", namespaces[i]);
    }
    char data[4096] = {0};
    CHECK(lseek(maps, 0, SEEK_CUR) == maps_at && lseek(meminfo, 0, SEEK_CUR) == meminfo_at, "files of /proc have other offsets");
    CHECK(pread(maps, data, 100, 0) > 0 && strstr(data, "-"), "/proc/self/maps cannot be read: %s", strerror(errno));
    CHECK(read(meminfo, data, sizeof data) > 0, "/proc/meminfo has ended");
    memset(data, 0, sizeof data);
    CHECK(read(ostype, data, sizeof data) == 6 && strcmp(data, "Linux\n") == 0, "/proc/sys/kernel/ostype says %s", data);
    close(MUST(openat(directory, "status", O_RDONLY)));
    struct stat own, opened;
    MUST(stat("/proc/self/", &own));
    MUST(fstat(directory, &opened));
    CHECK(own.st_ino == opened.st_ino, "the directory of /proc is another");
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    sigset_t all;
    sigfillset(&all);
    sigdelset(&all, SIGCHLD);
    MUST0(pthread_sigmask(SIG_BLOCK, &all, NULL));
    look_at_the_time();
    set_up_counters();
    set_up_timers();
    set_up_signals();
    set_up_watches();
    set_up_proc();
    guest_ready();
    while (!guest_finishing()) {
        look_at_the_time();
        step_counters();
        step_timers();
        step_watches();
        step_proc();
        guest_step();
        guest_sleep_ms(10);
    }
    look_at_the_time();
    check_timers();
    check_counters();
    check_signals();
    check_watches();
    check_proc();
    guest_ok();
}
