/*
 * Pseudo-terminals. The guest has the masters. Of the first pair the terminal controls a session of four processes: a leader, one
 * in the foreground that answers lines, one in the background, and one that is without the terminal. The other pairs have no
 * session: raw output as `mpirun` gives it to its ranks, packets, locked, left, dead, hung up, and with data that nobody has read.
 *
 *   pty DIR
 */
#include "guest.h"
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>

enum { LEADER, FRONT, BACK, WITHOUT, RANK, MEMBERS };

static struct {
    volatile pid_t pids[MEMBERS];
    volatile int windows[MEMBERS], interrupts[MEMBERS];
    volatile int look, looked[MEMBERS];
    volatile char wrong[MEMBERS][200];
} *all;

static int own;
static char path[64];

static void count(int signal) {
    if (signal == SIGWINCH) all->windows[own]++;
    else all->interrupts[own]++;
}

/* Masters whose numbers others are not likely to have by the time of the restore. */
static int pool[11], taken;

static void take_pool(void) {
    int low[800], count = 100 + getpid() % 40 * 16;
    for (int n = 0; n < count; n++) low[n] = MUST(open("/dev/ptmx", O_RDWR | O_NOCTTY));
    for (size_t n = 0; n < ARRAY_LEN(pool); n++) pool[n] = MUST(open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC));
    for (int n = 0; n < count; n++) MUST(close(low[n]));
}

static int master_of(char name[64], int flags) {
    int master = pool[taken++];
    MUST(fcntl(master, F_SETFL, O_RDWR | flags));
    MUST(grantpt(master));
    MUST(unlockpt(master));
    MUST(ptsname_r(master, name, 64));
    return master;
}

static void raw(int fd) {
    struct termios settings;
    MUST(tcgetattr(fd, &settings));
    cfmakeraw(&settings);
    MUST(tcsetattr(fd, TCSANOW, &settings));
}

static bool is_readable(int fd, int ms) {
    struct pollfd polled = {fd, POLLIN, 0};
    return poll(&polled, 1, ms) == 1 && polled.revents & POLLIN;
}

/* Reads until `length` bytes are there, and compares. */
static void expect(int fd, const char *what, size_t length, const char *of) {
    char *got = calloc(1, length + 1);
    size_t have = 0;
    while (have < length && is_readable(fd, 5000)) {
        ssize_t n = read(fd, got + have, length - have);
        CHECK(n > 0 || (n < 0 && errno == EAGAIN), "%s: read: %s", of, n ? strerror(errno) : "end");
        if (n > 0) have += (size_t)n;
    }
    CHECK(have == length && memcmp(got, what, length) == 0, "%s: read %zu bytes \"%s\", not %zu \"%.60s\"", of, have, got, length, what);
    free(got);
}

/* Writes as much as there is room for. */
static ssize_t fill(int fd, const char *what, size_t length) {
    size_t done = 0;
    for (int idle = 0; idle < 20 && done < length;) {
        ssize_t n = write(fd, what + done, length - done);
        if (n > 0) done += (size_t)n;
        else guest_sleep_ms_eintr(1), idle++;
    }
    return (ssize_t)done;
}

#define WRONG(condition, ...)                                                                                                  \
    do {                                                                                                                       \
        if (!(condition) && !all->wrong[own][0]) snprintf((char *)all->wrong[own], 200, __VA_ARGS__);                          \
    } while (0)

/* What each member says of its terminal. */
static void look_around(int tty) {
    char name[64] = "";
    if (own == RANK) {
        struct termios settings;
        WRONG(tcgetattr(1, &settings) == 0 && !(settings.c_oflag & OPOST), "the rank's terminal is not raw");
        WRONG(tcgetpgrp(1) == -1 && errno == ENOTTY, "the rank has a controlling terminal");
        return;
    }
    if (own == WITHOUT) {
        WRONG(open("/dev/tty", O_RDWR) == -1 && errno == ENXIO, "one without a terminal can open /dev/tty");
        return;
    }
    WRONG(tcgetsid(0) == all->pids[LEADER], "the terminal's session is %d", tcgetsid(0));
    WRONG(tcgetpgrp(0) == all->pids[FRONT], "group %d is in the foreground", tcgetpgrp(0));
    WRONG(ttyname_r(0, name, sizeof name) == 0 && strcmp(name, path) == 0, "the terminal is called %s", name);
    int again = open("/dev/tty", O_RDWR | O_NOCTTY);
    WRONG(again >= 0, "/dev/tty: %s", strerror(errno));
    close(again);
    if (tty < 0) return;
    WRONG(ttyname_r(tty, name, sizeof name) == 0 && strcmp(name, "/dev/tty") == 0, "fd %d is called %s", tty, name);
    unsigned device = 0, real = 0;
    WRONG(ioctl(tty, TIOCGDEV, &device) == 0 && ioctl(0, TIOCGDEV, &real) == 0 && device == real, "/dev/tty is another terminal");
    WRONG(fcntl(tty, F_GETFL) & O_NONBLOCK, "/dev/tty lost O_NONBLOCK");
}

__attribute__((noreturn)) static void member(int which, int tty) {
    own = which;
    MUST(prctl(PR_SET_PDEATHSIG, SIGKILL));
    all->pids[own] = getpid();
    int looked = 0;
    for (;;) {
        if (all->look != looked) {
            looked = all->look;
            look_around(tty);
            all->looked[own] = looked;
        }
        if (own == FRONT && is_readable(0, 2)) {
            char line[200] = "";
            ssize_t n = read(0, line, sizeof line - 1);
            if (n > 0) dprintf(1, "got %s", line);
        } else if (own == RANK && is_readable(0, 2)) {
            char byte;
            if (read(0, &byte, 1) == 1) MUST(write(1, "rank\n", 5));
        } else if (own != FRONT && own != RANK) {
            guest_sleep_ms_eintr(2);
        }
    }
}

/* A child, which has no master. */
static pid_t start(void) {
    pid_t pid = MUST(fork());
    for (size_t n = 0; pid == 0 && n < ARRAY_LEN(pool); n++) close(pool[n]);
    return pid;
}

/* The leader of the session that the terminal controls. */
__attribute__((noreturn)) static void lead(void) {
    own = LEADER;
    MUST(setsid());
    if (start() == 0) member(WITHOUT, -1);
    while (!all->pids[WITHOUT]) guest_sleep_ms_eintr(1);
    int terminal = MUST(open(path, O_RDWR));
    for (int fd = 0; fd < 3; fd++) MUST(dup2(terminal, fd));
    close(terminal);
    if (start() == 0) {
        MUST(setpgid(0, 0));
        member(BACK, -1);
    }
    if (start() == 0) {
        MUST(setpgid(0, 0));
        member(FRONT, MUST(open("/dev/tty", O_RDWR | O_NONBLOCK)));
    }
    while (!all->pids[FRONT] || !all->pids[BACK]) guest_sleep_ms_eintr(1);
    MUST(tcsetpgrp(0, all->pids[FRONT]));
    member(LEADER, -1);
}

static void all_look(void) {
    all->look++;
    for (int i = 0; i < MEMBERS; i++) {
        for (int n = 0; n < 2000 && all->looked[i] != all->look; n++) guest_sleep_ms_eintr(2);
        CHECK(all->looked[i] == all->look, "member %d does not answer", i);
        CHECK(!all->wrong[i][0], "member %d: %s", i, (char *)all->wrong[i]);
    }
}

static void answer(int master, const char *line, const char *want) {
    MUST(write(master, line, strlen(line)));
    expect(master, want, strlen(want), "an answer");
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    struct sigaction action = {.sa_handler = count, .sa_flags = SA_RESTART};
    MUST(sigaction(SIGWINCH, &action, NULL));
    MUST(sigaction(SIGINT, &action, NULL));
    all = MUST(mmap(NULL, sizeof *all, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));

    take_pool();

    /* The session. No echo, so that what comes back is the answer; and an odd character and speed. */
    int control = master_of(path, 0);
    struct termios settings, found;
    MUST(tcgetattr(control, &settings));
    settings.c_lflag &= ~(tcflag_t)ECHO;
    settings.c_cc[VINTR] = 'T' & 0x1f;
    settings.c_cc[VEOL] = ';';
    MUST(cfsetspeed(&settings, B9600));
    MUST(tcsetattr(control, TCSANOW, &settings));
    MUST(ioctl(control, TIOCSWINSZ, &(struct winsize){33, 99, 5, 7}));
    if (start() == 0) lead();
    while (!all->pids[FRONT] || !all->pids[BACK]) guest_sleep_ms_eintr(1);
    while (tcgetpgrp(control) != all->pids[FRONT]) guest_sleep_ms_eintr(1);

    /* As mpirun does it: the rank has the terminal as its output, and nobody a session. */
    char rank_path[64];
    int ranks = master_of(rank_path, 0), pipes[2];
    MUST(pipe(pipes));
    int rank_terminal = MUST(open(rank_path, O_RDWR | O_NOCTTY));
    raw(rank_terminal);
    if (start() == 0) {
        MUST(dup2(pipes[0], 0));
        MUST(dup2(rank_terminal, 1));
        MUST(dup2(rank_terminal, 2));
        close(rank_terminal);
        member(RANK, -1);
    }
    close(rank_terminal);
    close(pipes[0]);

    /* Packets, exclusive, locked; nobody ever opened the other end. */
    char locked_path[64];
    int locked = master_of(locked_path, O_NONBLOCK), on = 1;
    MUST(ioctl(locked, TIOCPKT, &on));
    MUST(ioctl(locked, TIOCEXCL));
    MUST(chmod(locked_path, 0640));
    if (geteuid() == 0) MUST(chown(locked_path, 1234, 2345));
    MUST(ioctl(locked, TIOCSPTLCK, &on));

    /* The other end was open and is closed. */
    char left_path[64];
    int left = master_of(left_path, 0);
    close(MUST(open(left_path, O_RDWR | O_NOCTTY)));

    /* The master was closed. */
    char dead_path[64];
    int dead_master = master_of(dead_path, 0), dead = MUST(open(dead_path, O_RDWR | O_NOCTTY));
    struct stat dead_before;
    MUST(fstat(dead, &dead_before));
    close(dead_master);

    /* Hung up with the master open, and opened again. */
    char hung_path[64];
    int hung_master = master_of(hung_path, 0), hung = MUST(open(hung_path, O_RDWR | O_NOCTTY)), live = -1;
    if (ioctl(hung, TIOCVHANGUP) == 0) live = MUST(open(hung_path, O_WRONLY | O_NOCTTY));
    else guest_skip("vhangup", "%s", strerror(errno));
#ifndef WITHOUT_DATA
    /* Lines that were not read, an end of file, a line that is not complete. */
    char lines_path[64];
    int lines = master_of(lines_path, O_NONBLOCK), line_reader = MUST(open(lines_path, O_RDWR | O_NOCTTY | O_NONBLOCK));
    MUST(tcgetattr(lines, &settings));
    settings.c_lflag &= ~(tcflag_t)ECHO;
    settings.c_cc[VEOL] = ';';
    MUST(tcsetattr(lines, TCSANOW, &settings));
    MUST(write(lines, "one\r\026\003;two\nthe\177is\026\377;\004half", 24));
    /* Raw input, of which too little is there to be read; output is stopped. */
    char few_path[64];
    int few = master_of(few_path, O_NONBLOCK), few_reader = MUST(open(few_path, O_RDWR | O_NOCTTY | O_NONBLOCK));
    MUST(tcgetattr(few, &settings));
    cfmakeraw(&settings);
    settings.c_cc[VMIN] = 4;
    MUST(tcsetattr(few, TCSANOW, &settings));
    MUST(write(few, "\000\003\n", 3));
    /* More output than fits, from one that is gone. */
    static char big[20000];
    uint64_t seed = 7;
    for (size_t i = 0; i < sizeof big; i++) big[i] = (char)random_next(&seed);
    char big_path[64];
    int full = master_of(big_path, O_NONBLOCK), big_writer = MUST(open(big_path, O_RDWR | O_NOCTTY | O_NONBLOCK));
    raw(big_writer);
    ssize_t filled = fill(big_writer, big, sizeof big);
    close(big_writer);
    /* More input than fits. */
    char much_path[64];
    int much = master_of(much_path, O_NONBLOCK), much_reader = MUST(open(much_path, O_RDWR | O_NOCTTY | O_NONBLOCK));
    raw(much_reader);
    ssize_t fed = fill(much, big, sizeof big);
    CHECK(filled > 5000 && fed > 5000, "only %zd and %zd bytes fit", filled, fed);
    MUST(tcflow(few_reader, TCOOFF));
    /* A packet that is data. */
    char packet_path[64];
    int packet = master_of(packet_path, O_NONBLOCK), packet_writer = MUST(open(packet_path, O_RDWR | O_NOCTTY | O_NONBLOCK));
    MUST(ioctl(packet, TIOCPKT, &on));
    MUST(write(packet_writer, "a\n", 2));
#endif
    while (!all->pids[RANK]) guest_sleep_ms_eintr(1);
    all_look();
    int windows = all->windows[FRONT];
    guest_link("say.left", left_path);
    guest_ready();
    while (!guest_finishing()) {
        char line[32], want[64];
        int length = snprintf(line, sizeof line, "line %lu\n", guest_steps);
        snprintf(want, sizeof want, "got line %lu\r\n", guest_steps);
        CHECK(write(control, line, (size_t)length) == length, "write to the terminal: %s", strerror(errno));
        expect(control, want, strlen(want), "the terminal");
        MUST(write(pipes[1], "x", 1));
        expect(ranks, "rank\n", 5, "the rank's output");
        guest_step();
        guest_sleep_ms_eintr(3);
    }

    all_look();
    MUST(tcgetattr(control, &found));
    CHECK(found.c_cc[VINTR] == ('T' & 0x1f) && found.c_cc[VEOL] == ';' && !(found.c_lflag & ECHO), "the settings changed");
    CHECK(found.c_lflag & ICANON && cfgetospeed(&found) == B9600 && cfgetispeed(&found) == B9600, "mode or speed changed");
    struct winsize size;
    MUST(ioctl(control, TIOCGWINSZ, &size));
    CHECK(size.ws_row == 33 && size.ws_col == 99 && size.ws_xpixel == 5 && size.ws_ypixel == 7, "the size is %d × %d", size.ws_row, size.ws_col);
    char name[64];
    MUST(ptsname_r(control, name, sizeof name));
    CHECK(strcmp(name, path) == 0, "the terminal was %s, and is %s", path, name);
    CHECK(tcgetsid(control) == all->pids[LEADER] && tcgetpgrp(control) == all->pids[FRONT], "session or foreground changed");
    CHECK(all->windows[FRONT] == windows, "somebody was told of a new size");
    MUST(ioctl(control, TIOCSWINSZ, &(struct winsize){40, 100, 0, 0}));
    MUST(write(control, "\024", 1));
    for (int i = 0; i < 1000 && !(all->interrupts[FRONT] && all->windows[FRONT] > windows); i++) guest_sleep_ms_eintr(2);
    CHECK(all->windows[FRONT] == windows + 1, "the foreground got %d SIGWINCH", all->windows[FRONT] - windows);
    CHECK(all->interrupts[FRONT] == 1, "the foreground got %d SIGINT", all->interrupts[FRONT]);
    for (int i = 0; i < MEMBERS; i++)
        if (i != FRONT) CHECK(!all->interrupts[i] && !all->windows[i], "member %d got a signal of the terminal", i);
    answer(control, "over;", "got over;");

    struct stat stat_now;
    CHECK(ioctl(locked, TIOCGPKT, &on) == 0 && on == 1, "packet mode is lost");
    CHECK(ioctl(locked, TIOCGPTLCK, &on) == 0 && on == 1, "the lock is lost");
    CHECK(ioctl(locked, TIOCGEXCL, &on) == 0 && on == 1, "exclusive mode is lost");
    CHECK(open(locked_path, O_RDWR | O_NOCTTY) == -1 && errno == EIO, "a locked terminal: %s", strerror(errno));
    MUST(stat(locked_path, &stat_now));
    CHECK((stat_now.st_mode & 0777) == 0640, "the terminal's mode is %o", stat_now.st_mode & 0777);
    CHECK(geteuid() || (stat_now.st_uid == 1234 && stat_now.st_gid == 2345), "its owner is %u:%u", stat_now.st_uid, stat_now.st_gid);
    char byte[8];
    CHECK(read(locked, byte, 1) == -1 && errno == EAGAIN, "a terminal that nobody opened yet: %s", strerror(errno));
    struct pollfd hup = {left, 0, 0};
    CHECK(poll(&hup, 1, 0) == 1 && hup.revents & POLLHUP, "a terminal that was left does not say so");
    CHECK(read(left, byte, 1) == -1 && errno == EIO, "a terminal that was left: %s", strerror(errno));
    int again = MUST(open(left_path, O_RDWR | O_NOCTTY));
    answer(again, "back\n", "");
    expect(left, "back\r\n", 6, "a terminal that was opened again");
    close(again);
    MUST(fstat(dead, &stat_now));
    CHECK(stat_now.st_rdev == dead_before.st_rdev, "the dead terminal is %u", minor(stat_now.st_rdev));
    CHECK(read(dead, byte, 1) == 0, "a dead terminal can be read");
    CHECK(write(dead, "x", 1) == -1 && errno == EIO, "a dead terminal: %s", strerror(errno));
    if (live >= 0) {
        CHECK(write(hung, "x", 1) == -1 && errno == EIO, "one that was hung up: %s", strerror(errno));
        answer(live, "alive\n", "");
        expect(hung_master, "alive\r\n", 7, "after a hang-up");
    }
#ifndef WITHOUT_DATA
    expect(line_reader, "one\n", 4, "the first line");
    expect(line_reader, "\003;", 2, "the second line");
    expect(line_reader, "two\n", 4, "the third line");
    expect(line_reader, "this\377;", 6, "the fourth line");
    CHECK(is_readable(line_reader, 0) && read(line_reader, byte, 8) == 0, "the end of file is lost");
    CHECK(!is_readable(line_reader, 20), "a line is complete too early");
    MUST(write(lines, "\177\177\177\177whole\n", 10));
    expect(line_reader, "whole\n", 6, "the line that was not complete");
    CHECK(!is_readable(lines, 0), "the restore was echoed");
    CHECK(!is_readable(few_reader, 0), "too few bytes are read");
    MUST(write(few, "\r", 1));
    expect(few_reader, "\000\003\n\r", 4, "raw input");
    expect(full, big, (size_t)filled, "much output");
    CHECK(read(full, byte, 1) == -1 && errno == EIO, "after much output: %s", strerror(errno));
    expect(much_reader, big, (size_t)fed, "much input");
    CHECK(!is_readable(much_reader, 20), "more input than there was");
    CHECK(read(packet, byte, 8) == 4 && memcmp(byte, "\0a\r\n", 4) == 0, "a packet");
    CHECK(write(few_reader, "b", 1) == -1 && errno == EAGAIN, "stopped output went on: %s", strerror(errno));
    MUST(tcflow(few_reader, TCOON));
    MUST(write(few_reader, "b", 1));
#endif
    MUST(kill(all->pids[LEADER], SIGKILL));
    MUST(kill(all->pids[RANK], SIGKILL));
    while (wait(NULL) > 0) {}
    guest_ok();
}
