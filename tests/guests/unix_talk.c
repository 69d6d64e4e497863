/*
 * Two processes that never stop talking through Unix-domain sockets: whenever a checkpoint is taken, something is under way.
 *
 *   unix_talk DIR [--part talk|users|timer]
 *
 * talk: the child writes an endless text into a stream and numbered packets into a second socket, some with a pipe that holds the
 * number again; it is often stopped while it waits for room. The parent reads a little of both at each step, checks every byte,
 * sends datagrams to the child's name, which checks number and sender; and has all of it watched by epoll.
 * users: who is at the other end is a process with other users and groups, one that has ended, or one that listened as somebody else.
 * timer: as talk, but for a message with a timer that nobody has open, which cannot be restored: it is received on "go.1".
 */
#include "guest.h"
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>

static struct shared {
    _Atomic int stop;
    _Atomic uint64_t letters; /* that the child has read */
} *shared;

static pid_t parent, child;

static struct sockaddr_un abstract(const char *name, socklen_t *length) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    int bytes = snprintf(at.sun_path + 1, sizeof at.sun_path - 1, "cr-talk-%d-%s", parent, name);
    *length = (socklen_t)offsetof(struct sockaddr_un, sun_path) + 1 + (socklen_t)bytes;
    return at;
}

static int bound(int type, const char *name) {
    socklen_t length;
    struct sockaddr_un at = abstract(name, &length);
    int fd = MUST(socket(AF_UNIX, type, 0));
    MUST(bind(fd, (struct sockaddr *)&at, length));
    return fd;
}

static void connect_to(int fd, const char *name) {
    socklen_t length;
    struct sockaddr_un at = abstract(name, &length);
    MUST(connect(fd, (struct sockaddr *)&at, length));
}

/* A message of one number, perhaps with a descriptor. */
static ssize_t send_number(int fd, uint64_t number, int right, int flags) {
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct iovec piece = {&number, sizeof number};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    if (right >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        *head = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
        memcpy(CMSG_DATA(head), &right, sizeof right);
    }
    return sendmsg(fd, &message, flags | MSG_NOSIGNAL);
}

static ssize_t receive_number(int fd, uint64_t *number, int *right, pid_t *sender, int flags) {
    union {
        char bytes[256];
        struct cmsghdr align;
    } control = {0};
    struct iovec piece = {number, sizeof *number};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(fd, &message, flags);
    if (n < 0) return n;
    for (struct cmsghdr *head = CMSG_FIRSTHDR(&message); head; head = CMSG_NXTHDR(&message, head)) {
        if (head->cmsg_type == SCM_RIGHTS && right) memcpy(right, CMSG_DATA(head), sizeof *right);
        if (head->cmsg_type == SCM_CREDENTIALS && sender) *sender = ((struct ucred *)CMSG_DATA(head))->pid;
    }
    return n;
}

/* -- talk --------------------------------------------------------------------------------------------------------------------- */

static int stream[2], packets[2], mailbox, idle[2], watch;
static uint64_t rng = 11, read_bytes, read_packets, sent_letters;

static unsigned char text_byte(uint64_t i) {
    uint64_t state = i / 8;
    return (unsigned char)(random_next(&state) >> i % 8 * 8);
}

__attribute__((noreturn)) static void talk(void) {
    uint64_t written = 0, numbered = 0, letters = 0;
    unsigned char text[3000];
    while (!shared->stop) {
        struct pollfd ready[] = {{stream[1], POLLOUT, 0}, {packets[1], POLLOUT, 0}, {mailbox, POLLIN, 0}};
        if (poll(ready, 3, 100) < 0 && errno != EINTR) guest_fail("child: poll: %s", strerror(errno));
        uint64_t size = 1 + random_below(&rng, sizeof text);
        for (uint64_t i = 0; i < size; i++) text[i] = text_byte(written + i);
        ssize_t n = send(stream[1], text, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n > 0) written += (uint64_t)n;
        CHECK(n > 0 || errno == EAGAIN, "child: the stream takes nothing: %s", strerror(errno));
        int end = -1;
        if (numbered % 3 == 0) {
            int both[2];
            MUST(pipe(both));
            CHECK(write(both[1], &numbered, sizeof numbered) == sizeof numbered, "child: write: %s", strerror(errno));
            MUST(close(both[1]));
            end = both[0];
        }
        n = send_number(packets[1], numbered, end, MSG_DONTWAIT);
        CHECK(n == 8 || errno == EAGAIN || errno == ETOOMANYREFS, "child: no packet can be sent: %s", strerror(errno));
        numbered += n == 8;
        if (end >= 0) MUST(close(end));
        uint64_t letter;
        pid_t sender = 0;
        while (receive_number(mailbox, &letter, NULL, &sender, MSG_DONTWAIT) == 8) {
            CHECK(letter == letters && sender == parent, "child: letter %lu of %d, not %lu of %d", letter, sender, letters, parent);
            shared->letters = ++letters;
        }
    }
    _exit(0);
}

static void add(int fd, uint32_t events, uint64_t data) {
    struct epoll_event event = {events, {.u64 = data}};
    MUST(epoll_ctl(watch, EPOLL_CTL_ADD, fd, &event));
}

static void set_up_talk(void) {
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, stream));
    MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, idle));
    mailbox = bound(SOCK_DGRAM, "mailbox");
    int on = 1;
    MUST(setsockopt(mailbox, SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
    child = MUST(fork());
    if (child == 0) {
        MUST(close(stream[0]) | close(packets[0]) | close(idle[0]) | close(idle[1]));
        talk();
    }
    MUST(close(stream[1]) | close(packets[1]) | close(mailbox));
    mailbox = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    connect_to(mailbox, "mailbox");
    watch = MUST(epoll_create1(EPOLL_CLOEXEC));
    add(stream[0], EPOLLIN, 0x1111);
    add(packets[0], EPOLLIN, 0x2222);
    /* It has reported that there is room, and does not again. */
    add(idle[0], EPOLLOUT | EPOLLONESHOT, 0x3333);
    struct epoll_event events[4];
    int spent = 0;
    while (!spent) {
        int n = MUST(epoll_wait(watch, events, 4, 1000));
        for (int i = 0; i < n; i++) spent |= events[i].data.u64 == 0x3333;
    }
}

static void step_talk(void) {
    unsigned char text[5000];
    size_t wanted = 1 + random_below(&rng, sizeof text);
    struct epoll_event events[4];
    int n = MUST(epoll_wait(watch, events, 4, 5000));
    CHECK(n > 0, "nothing is reported");
    for (int i = 0; i < n; i++) CHECK(events[i].data.u64 != 0x3333, "a watch that was spent reports %x", events[i].events);
    ssize_t got = MUST(recv(stream[0], text, wanted, 0));
    CHECK(got > 0, "the stream has ended");
    for (ssize_t i = 0; i < got; i++, read_bytes++)
        CHECK(text[i] == text_byte(read_bytes), "byte %lu of the stream is %02x, not %02x", read_bytes, text[i], text_byte(read_bytes));
    for (int i = 0; i < 3; i++) {
        uint64_t number, inside;
        int end = -1;
        CHECK(receive_number(packets[0], &number, &end, NULL, 0) == 8, "packet: %s", strerror(errno));
        CHECK(number == read_packets, "packet %lu comes as number %lu", number, read_packets);
        CHECK((end >= 0) == (number % 3 == 0), "packet %lu has descriptor %d", number, end);
        read_packets++;
        if (end < 0) continue;
        CHECK(read(end, &inside, 8) == 8 && inside == number, "the pipe in packet %lu holds %lu", number, inside);
        CHECK(read(end, &inside, 8) == 0, "the pipe in packet %lu has not ended", number);
        MUST(close(end));
    }
    if (send_number(mailbox, sent_letters, -1, MSG_DONTWAIT) == 8) sent_letters++;
    else CHECK(errno == EAGAIN, "the letter cannot be sent: %s", strerror(errno));
}

static void finish_talk(void) {
    struct epoll_event event = {EPOLLOUT | EPOLLONESHOT, {.u64 = 0x4444}}, events[4];
    MUST(epoll_ctl(watch, EPOLL_CTL_MOD, idle[0], &event));
    int n = MUST(epoll_wait(watch, events, 4, 1000)), armed = 0;
    for (int i = 0; i < n; i++) armed |= events[i].data.u64 == 0x4444;
    CHECK(armed, "the watch that was armed again does not report");
    for (int i = 0; i < 500 && shared->letters != sent_letters; i++) guest_sleep_ms(10);
    CHECK(shared->letters == sent_letters, "the child has read %lu letters of %lu", shared->letters, sent_letters);
}

/* -- users -------------------------------------------------------------------------------------------------------------------- */

#define UID 4321
#define GID 1234
static const gid_t groups[] = {7, 8, 4711};
static int listener, by_child, by_dead, dead_end, half_root[2];
static pid_t dead;

static void become_other(void) {
    MUST(setgroups(ARRAY_LEN(groups), groups));
    MUST(setresgid(GID, GID, GID));
    MUST(setresuid(UID, UID, UID));
}

static void expect_peer(int fd, pid_t pid, uid_t uid, gid_t gid, bool other_groups, const char *what) {
    struct ucred peer;
    socklen_t length = sizeof peer;
    MUST(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length));
    CHECK(peer.pid == pid && peer.uid == uid && peer.gid == gid, "%s: the other end is pid %d uid %d gid %d, not %d, %d, %d", what,
          peer.pid, peer.uid, peer.gid, pid, uid, gid);
    gid_t theirs[64];
    length = sizeof theirs;
    MUST(getsockopt(fd, SOL_SOCKET, 59 /* SO_PEERGROUPS */, theirs, &length));
    if (other_groups)
        CHECK(length == sizeof groups && memcmp(theirs, groups, length) == 0, "%s: other groups (%d bytes)", what, (int)length);
}

__attribute__((noreturn)) static void other_user(void) {
    become_other();
    int fd = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    connect_to(fd, "listener");
    char byte;
    while (recv(fd, &byte, 1, 0) == 1) {
        expect_peer(fd, parent, 0, 0, false, "the other user's socket");
        CHECK(send(fd, &byte, 1, MSG_NOSIGNAL) == 1, "the other user cannot answer: %s", strerror(errno));
    }
    _exit(0);
}

static void set_up_users(void) {
    listener = bound(SOCK_STREAM, "listener");
    MUST(listen(listener, 4));
    child = MUST(fork());
    if (child == 0) other_user();
    by_child = MUST(accept(listener, NULL, NULL));
    dead_end = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    dead = MUST(fork());
    if (dead == 0) {
        become_other();
        connect_to(dead_end, "listener");
        _exit(0);
    }
    CHECK(waitpid(dead, NULL, 0) == dead, "waitpid");
    by_dead = MUST(accept(listener, NULL, NULL));
    /* Made with another effective user only: the rights are still there. */
    MUST(setresgid(-1, GID, -1) | setresuid(-1, UID, -1));
    MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, half_root));
    MUST(setresuid(-1, 0, -1) | setresgid(-1, 0, -1));
}

static void step_users(void) {
    char byte = (char)guest_steps;
    CHECK(send(by_child, &byte, 1, MSG_NOSIGNAL) == 1, "send to the other user: %s", strerror(errno));
    CHECK(recv(by_child, &byte, 1, 0) == 1 && byte == (char)guest_steps, "the other user's answer: %s", strerror(errno));
    CHECK(send(dead_end, &byte, 1, 0) == 1 && recv(by_dead, &byte, 1, 0) == 1, "the dead one's socket: %s", strerror(errno));
}

static void finish_users(void) {
    expect_peer(by_child, child, UID, GID, true, "the other user's end");
    expect_peer(by_dead, dead, UID, GID, true, "the end of one that has ended");
    expect_peer(dead_end, parent, 0, 0, false, "the listener's end");
    expect_peer(half_root[0], parent, UID, GID, false, "a pair");
    expect_peer(half_root[1], parent, UID, GID, false, "a pair");
    MUST(close(by_child));
}

/* -- timer -------------------------------------------------------------------------------------------------------------------- */

static int carrier[2];

static void set_up_timer(void) {
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, carrier));
    int timer = MUST(timerfd_create(CLOCK_MONOTONIC, 0));
    CHECK(send_number(carrier[0], 5, timer, 0) == 8, "send: %s", strerror(errno));
    MUST(close(timer));
    char where[32];
    snprintf(where, sizeof where, "fd %d", carrier[1]);
    guest_link("say.where", where);
}

static void receive_timer(void) {
    uint64_t number;
    int timer = -1;
    CHECK(receive_number(carrier[1], &number, &timer, NULL, MSG_DONTWAIT) == 8 && timer >= 0, "there is no timer in the message");
    MUST(close(timer));
    guest_link("say.received", "");
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    bool users = false, timer = false;
    for (int i = 2; i + 1 < argc; i++) {
        if (strcmp(argv[i], "--part") != 0) continue;
        users = strcmp(argv[i + 1], "users") == 0;
        timer = strcmp(argv[i + 1], "timer") == 0;
    }
    signal(SIGPIPE, SIG_IGN);
    parent = getpid();
    shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED, "mmap: %s", strerror(errno));
    if (users && geteuid() != 0) {
        guest_skip("users", "only root can make processes of other users");
        users = false;
    }
    if (users) set_up_users();
    else set_up_talk();
    if (timer) set_up_timer();
    guest_ready();
    while (!guest_finishing()) {
        if (timer && guest_has("go.1")) receive_timer(), timer = false;
        guest_step();
        if (users) step_users();
        else step_talk();
        guest_sleep_ms(3);
    }
    if (users) finish_users();
    else finish_talk();
    shared->stop = 1;
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0, "the child ended with %#x", status);
    guest_ok();
}
