/*
 * Named FIFOs: data in them, changed size, packets, half-closed in every way, removed, shared by two processes, waited for.
 */
#include "guest.h"
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

static int make(const char *name, int flags) {
    char path[PATH_MAX];
    mkfifo(guest_path(path, name), 0600);
    return MUST(open(path, flags));
}

static short state(int fd) {
    struct pollfd polled = {fd, POLLIN | POLLOUT, 0};
    MUST(poll(&polled, 1, 0));
    return polled.revents;
}

static int pending(int fd) {
    int bytes = -1;
    MUST(ioctl(fd, FIONREAD, &bytes));
    return bytes;
}

static void expect(int fd, const char *what, const char *name) {
    char got[64] = "";
    ssize_t length = read(fd, got, sizeof got);
    CHECK(length == (ssize_t)strlen(what) && memcmp(got, what, strlen(what)) == 0, "%s: read %zd (%s)", name, length, got);
}

static void say(int fd, const char *what) { MUST(write(fd, what, strlen(what))); }

static bool is_same_file(int fd, const char *name) {
    char path[PATH_MAX];
    struct stat open_one, named;
    MUST(fstat(fd, &open_one));
    MUST(stat(guest_path(path, name), &named));
    return open_one.st_ino == named.st_ino && open_one.st_dev == named.st_dev;
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    int reader = make("both", O_RDONLY | O_NONBLOCK), writer = make("both", O_WRONLY);
    MUST(fcntl(writer, F_SETPIPE_SZ, 16 * PAGE));
    uint64_t next = 0, oldest = 0;
    for (; next < 100; next++) MUST(write(writer, &next, sizeof next));

    int one = make("read-write", O_RDWR | O_NONBLOCK), other = make("read-write", O_RDWR | O_APPEND);
    say(one, "in both directions");

    int lonely = make("lonely", O_RDONLY | O_NONBLOCK);
    int left = make("left", O_RDONLY | O_NONBLOCK), gone = make("left", O_WRONLY);
    say(gone, "the rest");
    MUST(close(gone));
    int deaf = make("deaf", O_RDWR), unheard = make("deaf", O_WRONLY);
    MUST(close(deaf));

    int nameless = make("removed", O_RDWR);
    say(nameless, "still here");
    char path[PATH_MAX];
    MUST(unlink(guest_path(path, "removed")));

    int packets = make("packets", O_RDWR);
    bool has_packets = fcntl(packets, F_SETFL, O_DIRECT) == 0;
    if (!has_packets) guest_skip("packets", "%s", strerror(errno));
    if (has_packets) {
        say(packets, "one");
        say(packets, "two");
    }

    int to_child = make("child", O_RDWR);
    MUST(mkfifo(guest_path(path, "late"), 0600));
    pid_t echo = MUST(fork());
    if (echo == 0) {
        for (int fd = 3; fd < 64; fd++)
            if (fd != to_child) close(fd);
        /* Waits for somebody to open the FIFO, and tells what it was told. */
        MUST(mkfifo(guest_path(path, "answer"), 0600));
        int in = MUST(open(guest_path(path, "late"), O_RDONLY));
        char text[16] = "";
        MUST(read(in, text, sizeof text));
        say(to_child, text);
        for (;;) pause();
    }
    while (!guest_has("answer")) guest_sleep_ms(1);
    guest_sleep_ms(20);
    guest_ready();
    while (!guest_finishing()) {
        MUST(write(writer, &next, sizeof next));
        next++;
        uint64_t got;
        CHECK(read(reader, &got, sizeof got) == sizeof got && got == oldest, "read %lu for %lu", got, oldest);
        oldest++;
        CHECK(pending(reader) == 800, "%d bytes pending", pending(reader));
        CHECK(state(lonely) == 0, "the reader without a writer: %x", state(lonely));
        CHECK(state(left) == (POLLIN | POLLHUP), "the reader whose writer is gone: %x", state(left));
        CHECK(state(unheard) == (POLLOUT | POLLERR), "the writer whose reader is gone: %x", state(unheard));
        guest_step();
        guest_sleep_ms(2);
    }
    CHECK(fcntl(reader, F_GETPIPE_SZ) == (int)(16 * PAGE), "capacity %d", fcntl(reader, F_GETPIPE_SZ));
    CHECK((fcntl(reader, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_RDONLY | O_NONBLOCK), "flags %x", fcntl(reader, F_GETFL));
    CHECK((fcntl(writer, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == O_WRONLY, "flags %x", fcntl(writer, F_GETFL));
    CHECK((fcntl(one, F_GETFL) & (O_ACCMODE | O_NONBLOCK | O_APPEND)) == (O_RDWR | O_NONBLOCK), "flags %x", fcntl(one, F_GETFL));
    CHECK((fcntl(other, F_GETFL) & (O_ACCMODE | O_NONBLOCK | O_APPEND)) == (O_RDWR | O_APPEND), "flags %x", fcntl(other, F_GETFL));
    CHECK(is_same_file(reader, "both") && is_same_file(one, "read-write") && is_same_file(unheard, "deaf"), "other files");
    for (uint64_t got; oldest < next; oldest++)
        CHECK(read(reader, &got, sizeof got) == sizeof got && got == oldest, "the rest: %lu for %lu", got, oldest);
    CHECK(pending(reader) == 0, "more than the rest");
    MUST(close(writer));
    CHECK(read(reader, path, 1) == 0 && (state(reader) & POLLHUP), "the end of both");
    expect(other, "in both directions", "read-write");
    CHECK(pending(one) == 0, "more in read-write");
    expect(left, "the rest", "left");
    CHECK(read(left, path, 1) == 0, "left has no end");
    CHECK(write(unheard, "x", 1) == -1 && errno == EPIPE, "written for nobody");
    CHECK(read(lonely, path, 1) == 0, "lonely");
    int friend = make("lonely", O_WRONLY);
    say(friend, "hello");
    expect(lonely, "hello", "lonely");
    MUST(close(friend));
    CHECK(state(lonely) == POLLHUP, "lonely again: %x", state(lonely));
    expect(nameless, "still here", "removed");
    struct stat stat;
    MUST(fstat(nameless, &stat));
    CHECK(stat.st_nlink == 0 && (stat.st_mode & 07777) == 0600, "removed: %lu links, mode %o", stat.st_nlink, stat.st_mode);
    if (has_packets) {
        expect(packets, "one", "packets");
        expect(packets, "two", "packets");
    }
    int late = make("late", O_WRONLY);
    say(late, "anybody?");
    expect(to_child, "anybody?", "the child's answer");
    kill(echo, SIGKILL);
    MUST(waitpid(echo, NULL, 0));
    guest_ok();
}
