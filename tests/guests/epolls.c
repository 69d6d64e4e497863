/*
 * Epoll sets: everything that can be watched, and every way of watching it. What is ready and not reported must be reported after a
 * restore, by each set exactly what it is about, and a thread that waits must go on waiting.
 *
 *   epolls DIR [--stopped]
 *
 * --stopped: it is being stopped by SIGSTOP, to which the kernel itself answers EINTR in epoll_wait (signal(7)).
 */
#include "guest.h"
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>

static int make_pipe(int *writer) {
    int ends[2];
    MUST(pipe2(ends, O_NONBLOCK));
    *writer = ends[1];
    return ends[0];
}

static void put(int fd) { CHECK(write(fd, "x", 1) == 1, "write to fd %d: %s", fd, strerror(errno)); }
static void add(int fd, uint64_t n) { CHECK(write(fd, &n, 8) == 8, "write to eventfd %d: %s", fd, strerror(errno)); }

static void watch(int set, int fd, uint32_t events, uint64_t data) {
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &(struct epoll_event){events, {.u64 = data}}));
}

/* What the set reports at once, by data: `expected` lists data and events, ascending, ended by data 0. */
struct expected {
    uint64_t data;
    uint32_t events;
};

static int by_data(const void *a, const void *b) {
    uint64_t x = ((const struct epoll_event *)a)->data.u64, y = ((const struct epoll_event *)b)->data.u64;
    return x < y ? -1 : x > y;
}

static void check_reports(int set, const struct expected *expected, const char *what) {
    struct epoll_event events[64];
    int got = MUST(epoll_wait(set, events, 64, 0)), i = 0;
    qsort(events, (size_t)got, sizeof *events, by_data);
    for (; i < got && expected[i].data; i++)
        CHECK(events[i].data.u64 == expected[i].data && events[i].events == expected[i].events,
              "%s: it reports %lx for %lx, expected %x for %lx", what, (unsigned long)events[i].events, (unsigned long)events[i].data.u64,
              expected[i].events, (unsigned long)expected[i].data);
    CHECK(i == got && !expected[i].data, "%s: it reports %d events, among them data %lx", what, got, i < got ? (unsigned long)events[i].data.u64 : 0ul);
}

#define REPORTS(set, what, ...) check_reports(set, (const struct expected[]){__VA_ARGS__ __VA_OPT__(,) {0, 0}}, what)

/* -- levels: reported whenever one asks ------------------------------------------------------------------------------------------- */

enum { FULL, EMPTY, ROOM, TIMER, SIGNAL, FILES, ITSELF, MOUNTS, HUNG, LEVELS };
static int levels, levels_dup, level[LEVELS], spare[LEVELS], level_outer, level_middle;

static void set_up_levels(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    levels = MUST(epoll_create1(EPOLL_CLOEXEC));
    level[FULL] = make_pipe(&spare[FULL]);
    put(spare[FULL]);
    level[EMPTY] = make_pipe(&spare[EMPTY]);
    level[ROOM] = MUST(eventfd(0, 0));
    level[TIMER] = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
    MUST(timerfd_settime(level[TIMER], 0, &(struct itimerspec){{3600, 0}, {0, 1}}, NULL));
    level[SIGNAL] = MUST(signalfd(-1, &set, SFD_NONBLOCK));
    MUST(sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 9}));
    level[FILES] = MUST(inotify_init1(0));
    MUST(inotify_add_watch(level[FILES], guest_dir, IN_DELETE));
    level[ITSELF] = MUST((int)syscall(SYS_pidfd_open, getpid(), 0));
    level[MOUNTS] = MUST(open("/proc/self/mountinfo", O_RDONLY));
    level[HUNG] = make_pipe(&spare[HUNG]);
    close(spare[HUNG]);
    for (int i = 0; i < LEVELS; i++) watch(levels, level[i], i == MOUNTS ? EPOLLPRI : EPOLLIN | EPOLLOUT, (uint64_t)i + 0xabcdef0100000001);
    levels_dup = MUST(fcntl(levels, F_DUPFD, 500));
    level_middle = MUST(epoll_create1(0));
    level_outer = MUST(epoll_create1(0));
    watch(level_outer, level_middle, EPOLLIN, 51);
    watch(level_middle, levels, EPOLLIN, 52);
    guest_sleep_ms(2);
}

static void check_levels(void) {
    uint64_t d = 0xabcdef0100000001;
    REPORTS(levels_dup, "the set of levels", {d + FULL, EPOLLIN}, {d + ROOM, EPOLLOUT}, {d + TIMER, EPOLLIN}, {d + SIGNAL, EPOLLIN}, {d + HUNG, EPOLLHUP});
    REPORTS(level_outer, "the outer set", {51, EPOLLIN});
    REPORTS(level_middle, "the middle set", {52, EPOLLIN});
}

/* -- edges: each is reported once --------------------------------------------------------------------------------------------------- */

static int edges, edge_pipe, edge_writer, edge_quiet, edge_quiet_writer, edge_counter, edge_shared, exclusive, exclusive_counter, edge_outer;

/* `struct epoll_params` of linux/eventpoll.h: how network devices are polled. */
#define SET_PARAMS _IOW(0x8a, 1, uint64_t)
#define GET_PARAMS _IOR(0x8a, 2, uint64_t)
static uint64_t params = 50 | 8ull << 32;
static bool params_set;

static void set_up_edges(void) {
    edges = MUST(epoll_create1(0));
    exclusive = MUST(epoll_create1(0));
    edge_pipe = make_pipe(&edge_writer);
    edge_quiet = make_pipe(&edge_quiet_writer);
    edge_counter = MUST(eventfd(0, EFD_NONBLOCK));
    exclusive_counter = MUST(eventfd(0, EFD_NONBLOCK));
    watch(edges, edge_pipe, EPOLLIN | EPOLLET | EPOLLRDHUP, 61);
    watch(edges, edge_quiet, EPOLLIN | EPOLLET, 62);
    watch(edges, edge_counter, EPOLLIN | EPOLLET, 63);
    watch(edges, edge_quiet_writer, EPOLLPRI | EPOLLET | EPOLLWAKEUP, 64);
    watch(exclusive, exclusive_counter, EPOLLIN | EPOLLET | EPOLLEXCLUSIVE, 65);
    edge_outer = MUST(epoll_create1(0));
    watch(edge_outer, edges, EPOLLIN | EPOLLET, 66);
    /* Pending from here to the end. */
    put(edge_writer);
    add(edge_counter, 3);
    edge_shared = MUST(dup(edges));
    if (ioctl(edges, SET_PARAMS, &params) != 0) guest_skip("epoll-params", "EPIOCSPARAMS: %s", strerror(errno));
    else params_set = true;
}

static void check_edges(void) {
    uint64_t now = 0;
    CHECK(!params_set || (ioctl(edges, GET_PARAMS, &now) == 0 && now == params), "the set polls devices with %lx, expected %lx", now, params);
    REPORTS(edge_outer, "the set of a set with edges", {66, EPOLLIN});
    REPORTS(edge_shared, "the set of edges", {61, EPOLLIN}, {63, EPOLLIN});
    REPORTS(edges, "the set of edges, a second time", );
    put(edge_quiet_writer);
    add(exclusive_counter, 1);
    REPORTS(edges, "the set of edges, after a new one", {62, EPOLLIN});
    REPORTS(exclusive, "the exclusive watch", {65, EPOLLIN});
    REPORTS(exclusive, "the exclusive watch, a second time", );
}

/* -- one-shot: armed, and spent ------------------------------------------------------------------------------------------------------- */

enum { SPENT_FULL, SPENT_EMPTY, SPENT_COUNTER, SPENT_TIMER, SPENT_PACKETS, SPENT };
static int shots, armed, armed_writer, spent[SPENT], spent_writer[SPENT];

static void set_up_shots(void) {
    shots = MUST(epoll_create1(0));
    armed = make_pipe(&armed_writer);
    for (int i = 0; i < SPENT; i++) spent[i] = make_pipe(&spent_writer[i]);
    MUST(dup2(MUST(eventfd(0, EFD_NONBLOCK)), spent[SPENT_COUNTER]));
    MUST(dup2(MUST(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)), spent[SPENT_TIMER]));
    MUST(timerfd_settime(spent[SPENT_TIMER], 0, &(struct itimerspec){{3600, 0}, {0, 1}}, NULL));
    MUST(fcntl(spent_writer[SPENT_PACKETS], F_SETFL, O_DIRECT | O_NONBLOCK));
    watch(shots, armed, EPOLLIN | EPOLLONESHOT, 71);
    put(armed_writer);
    for (int i = 0; i < SPENT; i++) {
        if (i == SPENT_FULL || i == SPENT_EMPTY || i == SPENT_PACKETS) put(spent_writer[i]);
        watch(shots, spent[i], EPOLLIN | EPOLLOUT | EPOLLONESHOT | (i % 2 ? EPOLLET : 0), (uint64_t)i + 72);
    }
    guest_sleep_ms(2);
    struct epoll_event events[16];
    int got = MUST(epoll_wait(shots, events, 16, 0));
    CHECK(got == SPENT + 1, "%d one-shot watches report", got);
    char byte[8];
    MUST(read(spent[SPENT_EMPTY], byte, 1));
    MUST(read(spent[SPENT_PACKETS], byte, 1));
    MUST(read(spent[SPENT_TIMER], byte, 8));
    MUST(epoll_ctl(shots, EPOLL_CTL_MOD, armed, &(struct epoll_event){EPOLLIN | EPOLLONESHOT, {.u64 = 79}}));
}

static void check_shots(void) {
    REPORTS(shots, "the set of one-shot watches", {79, EPOLLIN});
    for (int i = 0; i < SPENT; i++) close(spent_writer[i]);
    REPORTS(shots, "the set of one-shot watches, all spent, after a hang-up", );
    char byte[8];
    CHECK(read(spent[SPENT_FULL], byte, 8) == 1 && read(spent[SPENT_EMPTY], byte, 8) == 0 && read(spent[SPENT_PACKETS], byte, 8) == 0,
          "the pipes of spent watches hold something else");
    CHECK(read(spent[SPENT_COUNTER], byte, 8) == -1 && read(spent[SPENT_TIMER], byte, 8) == -1, "the counter or timer of a spent watch gives something");
    struct itimerspec left;
    MUST(timerfd_gettime(spent[SPENT_TIMER], &left));
    CHECK(left.it_interval.tv_sec == 3600 && left.it_value.tv_sec > 3000, "the timer of a spent watch was set anew");
    MUST(epoll_ctl(shots, EPOLL_CTL_MOD, spent[SPENT_EMPTY], &(struct epoll_event){EPOLLIN | EPOLLONESHOT, {.u64 = 80}}));
    REPORTS(shots, "the one-shot watch that was armed again", {80, EPOLLHUP});
}

/* -- dead members: the number is closed, or is something else ---------------------------------------------------------------------------- */

static int dead, dead_closed, dead_closed_writer, dead_reused_writer, dead_reused, dead_twice, dead_twice_writer;

static void set_up_dead(void) {
    int number;
    dead = MUST(epoll_create1(0));
    number = make_pipe(&dead_closed_writer);
    watch(dead, number, EPOLLIN, 81);
    dead_closed = MUST(fcntl(number, F_DUPFD, 400));
    int other = make_pipe(&dead_reused_writer), unwatched = MUST(eventfd(0, 0));
    watch(dead, other, EPOLLIN | EPOLLET, 82);
    dead_reused = MUST(fcntl(other, F_DUPFD, 410));
    MUST(dup2(unwatched, other));
    close(unwatched);
    /* The same number once more, with another file: both are watched under it. */
    dead_twice = make_pipe(&dead_twice_writer);
    watch(dead, dead_twice, EPOLLIN, 83);
    MUST(fcntl(dead_twice, F_DUPFD, 420));
    int fresh = MUST(eventfd(7, 0));
    MUST(dup2(fresh, dead_twice));
    close(fresh);
    watch(dead, dead_twice, EPOLLIN, 84);
    close(number);
    put(dead_reused_writer);
}

static void check_dead(void) {
    REPORTS(dead, "the set with dead members", {82, EPOLLIN}, {84, EPOLLIN});
    put(dead_closed_writer);
    put(dead_twice_writer);
    REPORTS(dead, "the set with dead members, after some data", {81, EPOLLIN}, {83, EPOLLIN}, {84, EPOLLIN});
    close(dead_closed);
    REPORTS(dead, "the set with dead members, one of them gone", {83, EPOLLIN}, {84, EPOLLIN});
}

/* -- many: more than fit into one table of calls ------------------------------------------------------------------------------------------ */

#define FIRST_OF_MANY 2000
static int many, many_counter;
static int many_count = 5000;

static void set_up_many(void) {
    struct rlimit files;
    MUST(getrlimit(RLIMIT_NOFILE, &files));
    files.rlim_cur = files.rlim_max;
    MUST(setrlimit(RLIMIT_NOFILE, &files));
    if (files.rlim_cur < FIRST_OF_MANY + (rlim_t)many_count) {
        guest_skip("epoll-many", "no more than %lu open files are allowed", files.rlim_cur);
        many_count = 0;
        return;
    }
    many = MUST(epoll_create1(0));
    many_counter = MUST(eventfd(0, EFD_NONBLOCK));
    for (int i = 0; i < many_count; i++) {
        MUST(dup2(many_counter, FIRST_OF_MANY + i));
        watch(many, FIRST_OF_MANY + i, EPOLLIN | EPOLLET, (uint64_t)i + 1000);
    }
}

static void check_many(void) {
    static bool seen[1 << 16];
    struct epoll_event events[512];
    int got, all = 0;
    if (!many_count) return;
    add(many_counter, 1);
    while ((got = MUST(epoll_wait(many, events, 512, 0))) > 0)
        for (int i = 0; i < got; i++, all++) {
            uint64_t n = events[i].data.u64 - 1000;
            CHECK(n < (uint64_t)many_count && !seen[n], "the set of many reports data %lu", n + 1000);
            seen[n] = true;
        }
    CHECK(all == many_count, "the set of many reports %d of %d", all, many_count);
}

/* -- threads that wait --------------------------------------------------------------------------------------------------------------------- */

static int endless, endless_counter, busy, busy_counter;
static volatile uint64_t endless_got, busy_got;
static uint64_t busy_given;
static volatile bool busy_stops;
static pthread_t waiting, working;

static bool stopped;

static int wait_for_one(int set, struct epoll_event *event) {
    int got;
    while ((got = epoll_wait(set, event, 1, -1)) == -1 && errno == EINTR && stopped) {}
    return got;
}

static void *wait_without_end(void *unused) {
    struct epoll_event event;
    int got = wait_for_one(endless, &event);
    CHECK(got == 1 && event.data.u64 == 91, "the endless epoll_wait gave %d (%s)", got, strerror(errno));
    endless_got = event.data.u64;
    return unused;
}

/* Edge-triggered: were one edge lost, it would wait for ever. */
static void *work(void *unused) {
    while (!busy_stops) {
        struct epoll_event event;
        uint64_t n;
        int got = wait_for_one(busy, &event);
        CHECK(got == 1 && event.data.u64 == 92, "the epoll_wait of the busy thread gave %d (%s)", got, strerror(errno));
        if (read(busy_counter, &n, 8) == 8) busy_got += n;
        else CHECK(errno == EAGAIN, "read of the busy thread: %s", strerror(errno));
    }
    return unused;
}

static void set_up_threads(void) {
    endless = MUST(epoll_create1(0));
    endless_counter = MUST(eventfd(0, 0));
    watch(endless, endless_counter, EPOLLIN, 91);
    busy = MUST(epoll_create1(0));
    busy_counter = MUST(eventfd(0, EFD_NONBLOCK));
    watch(busy, busy_counter, EPOLLIN | EPOLLET, 92);
    MUST0(pthread_create(&waiting, NULL, wait_without_end, NULL));
    MUST0(pthread_create(&working, NULL, work, NULL));
}

static void step_threads(void) {
    add(busy_counter, guest_steps + 1);
    busy_given += guest_steps + 1;
}

static void check_threads(void) {
    CHECK(!endless_got, "the endless epoll_wait has ended before its time");
    add(endless_counter, 1);
    MUST0(pthread_join(waiting, NULL));
    for (int i = 0; i < 100 && busy_got != busy_given; i++) guest_sleep_ms(10);
    CHECK(busy_got == busy_given, "the busy thread got %lu of %lu", busy_got, busy_given);
    busy_stops = true;
    add(busy_counter, 1);
    MUST0(pthread_join(working, NULL));
}

/* -- what fdinfo shows of all sets ----------------------------------------------------------------------------------------------------------- */

static char was[1 << 20], is[1 << 20];

static int by_line(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* One line for each file watched: number, events, data. Of what follows the inodes are others after a restore. */
static void describe(char *out, size_t size) {
    static char text[1 << 20], *lines[20000];
    const int sets[] = {levels, edges, exclusive, shots, dead, level_outer, level_middle, edge_outer, endless, busy, many};
    char *end = out + size;
    for (size_t i = 0; i < ARRAY_LEN(sets); i++) {
        char path[64];
        size_t count = 0;
        snprintf(path, sizeof path, "/proc/self/fdinfo/%d", sets[i]);
        if (sets[i] == 0) continue;
        guest_read_file(path, text, sizeof text);
        for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
            if (strncmp(line, "tfd:", 4) == 0) lines[count++] = line;
        for (size_t n = 0; n < count; n++) *strstr(lines[n], " pos:") = 0;
        qsort(lines, count, sizeof *lines, by_line);
        for (size_t n = 0; n < count; n++) out += snprintf(out, (size_t)(end - out), "set %zu: %s\n", i, lines[n]);
    }
}

static void check_descriptions(void) {
    describe(is, sizeof is);
    char *save_a = NULL, *save_b = NULL, *a = strtok_r(was, "\n", &save_a), *b = strtok_r(is, "\n", &save_b);
    for (; a && b; a = strtok_r(NULL, "\n", &save_a), b = strtok_r(NULL, "\n", &save_b))
        CHECK(strcmp(a, b) == 0, "was  %s  and is  %s", a, b);
    CHECK(!a && !b, "there are %s files watched than before: %s", a ? "fewer" : "more", a ? a : b);
    CHECK(fcntl(levels, F_GETFD) == FD_CLOEXEC && fcntl(levels_dup, F_GETFD) == 0, "a set has another close-on-exec flag");
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    sigset_t all;
    sigfillset(&all);
    MUST0(pthread_sigmask(SIG_BLOCK, &all, NULL));
    stopped = guest_option(argc, argv, "stopped", 0);
    set_up_levels();
    set_up_edges();
    set_up_shots();
    set_up_dead();
    set_up_many();
    set_up_threads();
    describe(was, sizeof was);
    guest_ready();
    while (!guest_finishing()) {
        if (guest_steps % 5 == 0) check_levels();
        step_threads();
        guest_step();
        guest_sleep_ms(10);
    }
    check_descriptions();
    check_levels();
    check_edges();
    check_shots();
    check_dead();
    check_many();
    check_threads();
    guest_ok();
}
