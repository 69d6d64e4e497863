/*
 * Unix-domain sockets in every state: pairs, names, listeners with clients that wait, ends that were closed, and queues with data,
 * descriptors and senders in them. Nothing that is queued is read before the end, where all of it is checked. A child has one end
 * of a pair, and answers at each step.
 *
 *   unix DIR
 */
#include "guest.h"
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#define BIG 100000

static struct sockaddr_un address(const char *name, socklen_t *length) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    size_t bytes = strlen(name);
    CHECK(bytes < sizeof at.sun_path, "the name %s is too long", name);
    memcpy(at.sun_path, name, bytes);
    if (at.sun_path[0] == '@') at.sun_path[0] = 0;
    *length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + bytes + (name[0] != '@'));
    return at;
}

static int bound(int type, const char *name) {
    socklen_t length;
    struct sockaddr_un at = address(name, &length);
    int fd = MUST(socket(AF_UNIX, type, 0));
    MUST(bind(fd, (struct sockaddr *)&at, length));
    return fd;
}

static int connect_to(int fd, const char *name) {
    socklen_t length;
    struct sockaddr_un at = address(name, &length);
    return connect(fd, (struct sockaddr *)&at, length);
}

static int connected(int type, const char *name) {
    int fd = MUST(socket(AF_UNIX, type, 0));
    MUST(connect_to(fd, name));
    return fd;
}

static void expect_name(int fd, bool peer, const char *name, const char *what) {
    struct sockaddr_un at = {0};
    socklen_t length = sizeof at, wanted_length;
    MUST((peer ? getpeername : getsockname)(fd, (struct sockaddr *)&at, &length));
    if (!name[0]) {
        CHECK(length == sizeof(sa_family_t), "%s has a name: %s", what, at.sun_path);
        return;
    }
    struct sockaddr_un wanted = address(name, &wanted_length);
    CHECK(length == wanted_length && memcmp(at.sun_path, wanted.sun_path, length - offsetof(struct sockaddr_un, sun_path)) == 0,
          "%s: the %s name is %d bytes \"%s\", not \"%s\"", what, peer ? "other end's" : "own", (int)length, at.sun_path, name);
}

static void expect(int fd, const char *text, const char *what) {
    char got[256] = {0};
    ssize_t n = recv(fd, got, sizeof got - 1, MSG_DONTWAIT);
    CHECK(n == (ssize_t)strlen(text) && strcmp(got, text) == 0, "%s: got %zd bytes \"%s\" (%s), not \"%s\"", what, n, got,
          n < 0 ? strerror(errno) : "", text);
}

static void expect_error(int fd, int wanted, const char *what) {
    char got[8];
    ssize_t n = recv(fd, got, sizeof got, MSG_DONTWAIT);
    int error = n < 0 ? errno : 0;
    CHECK(n <= 0 && error == wanted, "%s: recv gave %zd, %s; wanted %s", what, n, strerror(error), strerror(wanted));
}

static void expect_peer_ids(int fd, pid_t pid, uid_t uid, gid_t gid, const char *what) {
    struct ucred peer;
    socklen_t length = sizeof peer;
    MUST(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length));
    CHECK(peer.pid == pid && peer.uid == uid && peer.gid == gid, "%s: SO_PEERCRED is pid %d uid %d gid %d, not %d %d %d", what,
          peer.pid, peer.uid, peer.gid, pid, uid, gid);
}

static void expect_peer(int fd, pid_t pid, const char *what) { expect_peer_ids(fd, pid, geteuid(), getegid(), what); }

static void set(int fd, int name, int value) { MUST(setsockopt(fd, SOL_SOCKET, name, &value, sizeof value)); }

static int get(int fd, int name) {
    int value = -1;
    socklen_t length = sizeof value;
    MUST(getsockopt(fd, SOL_SOCKET, name, &value, &length));
    return value;
}

static void send_with(int fd, const char *text, const int *rights, size_t count) {
    union {
        char bytes[CMSG_SPACE(8 * sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct iovec piece = {(char *)text, strlen(text)};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control.bytes};
    message.msg_controllen = CMSG_SPACE(count * sizeof(int));
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(head), rights, count * sizeof(int));
    CHECK(sendmsg(fd, &message, 0) == (ssize_t)strlen(text), "sendmsg: %s", strerror(errno));
}

/* Receives at most `room` bytes, which must be `text`, with that many descriptors, and from that sender if it is not 0. */
static void receive_with(int fd, size_t room, const char *text, int *rights, size_t count, pid_t sender, const char *what) {
    union {
        char bytes[512];
        struct cmsghdr align;
    } control = {0};
    char got[256] = {0};
    struct iovec piece = {got, room};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(fd, &message, MSG_DONTWAIT);
    CHECK(n == (ssize_t)strlen(text) && strcmp(got, text) == 0, "%s: got %zd bytes \"%s\", not \"%s\"", what, n, got, text);
    size_t had = 0;
    pid_t from = 0;
    for (struct cmsghdr *head = CMSG_FIRSTHDR(&message); head; head = CMSG_NXTHDR(&message, head)) {
        if (head->cmsg_type == SCM_RIGHTS) {
            had = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            CHECK(had <= count, "%s: %zu descriptors, not %zu", what, had, count);
            memcpy(rights, CMSG_DATA(head), had * sizeof(int));
        } else if (head->cmsg_type == SCM_CREDENTIALS) {
            from = ((struct ucred *)CMSG_DATA(head))->pid;
        }
    }
    CHECK(had == count, "%s: %zu descriptors, not %zu", what, had, count);
    CHECK(from == sender, "%s: the sender is %d, not %d", what, from, sender);
}

static void child(int end) {
    char request[8];
    for (;;) {
        ssize_t n = recv(end, request, sizeof request, 0);
        if (n == 0) _exit(0);
        CHECK(n == 8, "the child received %zd bytes: %s", n, strerror(errno));
        expect_peer(end, getppid(), "the child's end");
        CHECK(send(end, request, 8, MSG_NOSIGNAL) == 8, "the child cannot answer: %s", strerror(errno));
    }
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    MUST(chdir(guest_dir));
    signal(SIGPIPE, SIG_IGN);
    pid_t me = getpid();
    char abstract[64], closed_abstract[64], mail[64], letters[64], users[64];
    snprintf(abstract, sizeof abstract, "@cr-unix-%d", me);
    snprintf(closed_abstract, sizeof closed_abstract, "@cr-unix-closed-%d", me);
    snprintf(mail, sizeof mail, "@cr-unix-mail-%d", me);
    snprintf(users, sizeof users, "@cr-unix-user-%d", me);
    snprintf(letters, sizeof letters, "@cr-unix-letters-%d", me);
    char path[PATH_MAX], gone[PATH_MAX];
    guest_path(path, "listener");
    guest_path(gone, "gone");

    /* A child at the other end. */
    int family[2];
    MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, family));
    pid_t kid = MUST(fork());
    if (kid == 0) {
        close(family[0]);
        child(family[1]);
    }
    MUST(close(family[1]));

    /* A pair with much in it in both directions, and options. */
    int pair[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair));
    set(pair[0], SO_SNDBUF, 300000);
    set(pair[1], SO_RCVLOWAT, 3);
    set(pair[1], SO_PRIORITY, 4);
    struct timeval timeout = {7, 250000};
    MUST(setsockopt(pair[1], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout));
    int size_before = get(pair[0], SO_SNDBUF), other_size = get(pair[1], SO_SNDBUF);
    static char big[BIG], got[BIG + 1];
    for (int i = 0; i < BIG; i++) big[i] = (char)(i * 7 + i / 251);
    CHECK(send(pair[0], big, BIG, 0) == BIG, "the pair takes no %d bytes: %s", BIG, strerror(errno));
    CHECK(send(pair[1], "back", 4, 0) == 4, "send: %s", strerror(errno));
    MUST(fcntl(pair[1], F_SETFL, 0));

    /* Descriptors in messages: one that is open here too, one that is open nowhere else, and a socket with a message in it. */
    int carrier[2], inner[2], pipes[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, carrier));
    MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, inner));
    MUST(pipe(pipes));
    int file = MUST(open("file", O_CREAT | O_RDWR, 0600));
    CHECK(write(file, "0123456789", 10) == 10, "write: %s", strerror(errno));
    MUST(lseek(file, 4, SEEK_SET));
    CHECK(write(pipes[1], "in the pipe", 11) == 11, "write: %s", strerror(errno));
    CHECK(send(inner[0], "inner", 5, 0) == 5, "send: %s", strerror(errno));
    CHECK(send(carrier[0], "before", 6, 0) == 6, "send: %s", strerror(errno));
    send_with(carrier[0], "with", (int[]){file, pipes[0]}, 2);
    send_with(carrier[0], "socket", (int[]){inner[1]}, 1);
    CHECK(send(carrier[0], "after", 5, 0) == 5, "send: %s", strerror(errno));
    MUST(close(pipes[0]));
    MUST(close(inner[1]));

    /* Senders. */
    int told[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, told));
    set(told[1], SO_PASSCRED, 1);
    CHECK(send(told[0], "mine", 4, 0) == 4, "send: %s", strerror(errno));
    pid_t author = MUST(fork());
    if (author == 0) _exit(send(told[0], "theirs", 6, 0) == 6 ? 0 : 1);
    CHECK(waitpid(author, NULL, 0) == author, "waitpid");

    /* A pair made under another user's rights, and a listener; a pair whose maker has ended. */
    uid_t user = geteuid() == 0 ? 1234 : geteuid();
    gid_t group = geteuid() == 0 ? 5678 : getegid();
    int foreign[2], legacy[2], as_user, to_user, of_user;
    if (user != geteuid()) MUST(setegid(group)), MUST(seteuid(user));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, foreign));
    as_user = bound(SOCK_STREAM, users);
    MUST(listen(as_user, 1));
    MUST(seteuid(getuid())), MUST(setegid(getgid()));
    to_user = connected(SOCK_STREAM, users);
    of_user = MUST(accept(as_user, NULL, NULL));
    MUST(prctl(PR_SET_DUMPABLE, 1));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, legacy));
    pid_t maker = MUST(fork());
    if (maker == 0) {
        int made[2];
        MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, made));
        send_with(legacy[0], "made", made, 2);
        _exit(0);
    }
    int inherited[2];
    CHECK(waitpid(maker, NULL, 0) == maker, "waitpid");
    receive_with(legacy[1], 200, "made", inherited, 2, 0, "what is left of a process");

    /* Shut down, and closed. */
    int half[2], orphan[2], reset[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, half));
    CHECK(send(half[0], "last words", 10, 0) == 10, "send: %s", strerror(errno));
    MUST(shutdown(half[0], SHUT_WR));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, orphan));
    CHECK(send(orphan[0], "testament", 9, 0) == 9, "send: %s", strerror(errno));
    MUST(close(orphan[0]));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, reset));
    CHECK(send(reset[1], "unread", 6, 0) == 6, "send: %s", strerror(errno));
    MUST(close(reset[0]));

    /* Messages. */
    int packets[2];
    MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets));
    const char *messages[] = {"", "one", "two and more", "3"};
    for (size_t i = 0; i < ARRAY_LEN(messages); i++)
        CHECK(send(packets[0], messages[i], strlen(messages[i]), 0) >= 0, "send: %s", strerror(errno));
    send_with(packets[0], "file", (int[]){file}, 1);
    int box = bound(SOCK_DGRAM, mail), writer = bound(SOCK_DGRAM, letters), nobody = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    MUST(connect_to(writer, mail));
    MUST(connect_to(nobody, mail));
    CHECK(send(nobody, "anonymous", 9, 0) == 9 && send(writer, "signed", 6, 0) == 6, "send: %s", strerror(errno));

    /* Listeners: by path, with an accepted connection and two that wait; unlinked; abstract and closed since; relative. */
    int listener = bound(SOCK_STREAM, path);
    MUST(chmod(path, 0640));
    MUST(listen(listener, 5));
    int client = connected(SOCK_STREAM, path), server = MUST(accept(listener, NULL, NULL));
    CHECK(send(client, "request", 7, 0) == 7 && send(server, "answer", 6, 0) == 6, "send: %s", strerror(errno));
    int left = connected(SOCK_STREAM, path);
    MUST(close(MUST(accept(listener, NULL, NULL))));
    int first = connected(SOCK_STREAM, path), second = connected(SOCK_STREAM, path);
    int hidden = bound(SOCK_SEQPACKET, gone);
    MUST(listen(hidden, 3));
    MUST(unlink(gone));
    int once = bound(SOCK_STREAM, closed_abstract);
    MUST(listen(once, 1));
    int old_client = connected(SOCK_STREAM, closed_abstract), old_server = MUST(accept(once, NULL, NULL));
    MUST(close(once));
    int listed = bound(SOCK_STREAM, abstract), relative = bound(SOCK_DGRAM, "relative");
    MUST(listen(listed, 2));

    guest_ready();
    uint64_t asked = 0;
    while (!guest_finishing()) {
        guest_step();
        asked++;
        uint64_t answer = 0;
        CHECK(send(family[0], &asked, 8, MSG_NOSIGNAL) == 8, "the child's end: %s", strerror(errno));
        CHECK(recv(family[0], &answer, 8, 0) == 8 && answer == asked, "the child answered %lu, not %lu", answer, asked);
        CHECK(send(server, "x", 1, MSG_NOSIGNAL) == 1 && recv(client, got, 1, MSG_PEEK) == 1, "server: %s", strerror(errno));
        guest_sleep_ms(10);
    }

    expect_peer(family[0], me, "the family's pair");
    expect_peer(pair[0], me, "the pair");
    CHECK(get(pair[0], SO_SNDBUF) == size_before && get(pair[1], SO_SNDBUF) == other_size, "SO_SNDBUF is %d and %d, not %d and %d",
          get(pair[0], SO_SNDBUF), get(pair[1], SO_SNDBUF), size_before, other_size);
    CHECK(get(pair[1], SO_RCVLOWAT) == 3 && get(pair[1], SO_PRIORITY) == 4, "SO_RCVLOWAT, SO_PRIORITY");
    CHECK(get(pair[1], SO_PEEK_OFF) == -1 && get(carrier[1], SO_PEEK_OFF) == -1 && get(packets[1], SO_PEEK_OFF) == -1, "SO_PEEK_OFF");
    CHECK(get(pair[0], 72 /* SO_BUF_LOCK */) == 1, "SO_BUF_LOCK is %d", get(pair[0], 72));
    socklen_t length = sizeof timeout;
    MUST(getsockopt(pair[1], SOL_SOCKET, SO_RCVTIMEO, &timeout, &length));
    CHECK(timeout.tv_sec == 7 && timeout.tv_usec >= 248000 && timeout.tv_usec <= 252000, "SO_RCVTIMEO is %ld.%06ld", timeout.tv_sec,
          timeout.tv_usec);
    CHECK(MUST(fcntl(pair[0], F_GETFL)) & O_NONBLOCK && !(MUST(fcntl(pair[1], F_GETFL)) & O_NONBLOCK), "O_NONBLOCK");
    int unread = 0;
    MUST(ioctl(pair[1], FIONREAD, &unread));
    CHECK(unread == BIG, "%d bytes wait in the pair", unread);
    for (ssize_t at = 0, n; at < BIG; at += n) {
        n = recv(pair[1], got + at, (size_t)(BIG - at), MSG_DONTWAIT);
        CHECK(n > 0, "the pair ends at byte %zd: %s", at, strerror(errno));
    }
    CHECK(memcmp(got, big, BIG) == 0, "the pair's bytes");
    expect(pair[0], "back", "the pair, back");
    expect_error(pair[0], EAGAIN, "the pair, emptied");

    int rights[2], same;
    receive_with(carrier[1], 6, "before", rights, 0, 0, "the carrier");
    receive_with(carrier[1], 200, "with", rights, 2, 0, "the carrier");
    MUST(lseek(file, 6, SEEK_SET));
    CHECK(lseek(rights[0], 0, SEEK_CUR) == 6, "the file in the message is another description");
    CHECK(read(rights[1], got, 100) == 11 && memcmp(got, "in the pipe", 11) == 0, "the pipe in the message");
    CHECK(write(pipes[1], "more", 4) == 4 && read(rights[1], got, 100) == 4, "the pipe in the message has another end");
    receive_with(carrier[1], 200, "socket", &same, 1, 0, "the carrier");
    expect(same, "inner", "the socket in the message");
    CHECK(send(same, "out", 3, 0) == 3, "send: %s", strerror(errno));
    expect(inner[0], "out", "the other end of the socket in the message");
    receive_with(carrier[1], 200, "after", rights, 0, 0, "the carrier");

    receive_with(told[1], 200, "mine", rights, 0, me, "a told sender");
    receive_with(told[1], 200, "theirs", rights, 0, author, "a told sender that has ended");

    expect_peer_ids(foreign[0], me, user, group, "a pair made as another user");
    expect_peer_ids(foreign[1], me, user, group, "a pair made as another user");
    expect_peer_ids(to_user, me, user, group, "a client of another user's listener");
    expect_peer(of_user, me, "the server of a client");
    expect_peer(inherited[0], maker, "a pair whose maker has ended");
    CHECK(send(inherited[0], "on", 2, 0) == 2, "send: %s", strerror(errno));
    expect(inherited[1], "on", "a pair whose maker has ended");

    expect(half[1], "last words", "a half-closed pair");
    expect_error(half[1], 0, "a half-closed pair");
    CHECK(send(half[0], "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE, "a half-closed pair can be written to");
    CHECK(send(half[1], "hello", 5, MSG_NOSIGNAL) == 5, "send: %s", strerror(errno));
    expect(half[0], "hello", "the other half");
    expect(orphan[1], "testament", "an end whose other end was closed");
    expect_error(orphan[1], 0, "an end whose other end was closed");
    CHECK(send(orphan[1], "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE, "an orphan can be written to");
    expect_error(reset[1], ECONNRESET, "an end whose other end was closed with something in it");

    for (size_t i = 0; i < ARRAY_LEN(messages); i++) expect(packets[1], messages[i], "packets");
    receive_with(packets[1], 200, "file", &same, 1, 0, "packets");
    CHECK(lseek(same, 0, SEEK_CUR) == 6, "the file in the packet is another description");
    expect_error(packets[1], EAGAIN, "packets, emptied");
    for (int i = 0; i < 2; i++) {
        struct sockaddr_un from = {0}, wanted = address(letters, &length);
        socklen_t wanted_length = length;
        length = sizeof from;
        ssize_t n = recvfrom(box, got, 100, MSG_DONTWAIT, (struct sockaddr *)&from, &length);
        if (i == 0) CHECK(n == 9 && memcmp(got, "anonymous", 9) == 0 && length <= 2, "the first letter: %zd bytes, name of %d", n, (int)length);
        else CHECK(n == 6 && length == wanted_length && memcmp(&from, &wanted, length) == 0, "the second letter: %zd bytes", n);
    }
    CHECK(send(writer, "again", 5, 0) == 5, "the writer is not connected: %s", strerror(errno));
    expect(box, "again", "the box");
    expect_name(writer, true, mail, "the writer");

    struct stat stat;
    MUST(lstat(path, &stat));
    CHECK(S_ISSOCK(stat.st_mode) && (stat.st_mode & 07777) == 0640, "the listener's file has mode %o", stat.st_mode);
    CHECK(get(listener, SO_ACCEPTCONN) == 1, "the listener does not listen");
    expect_name(listener, false, path, "the listener");
    expect_name(server, false, path, "the server");
    expect_name(client, true, path, "the client");
    expect_name(client, false, "", "the client");
    expect_peer(client, me, "the client");
    expect_peer(server, me, "the server");
    receive_with(server, 200, "request", rights, 0, 0, "the server");
    CHECK(recv(client, got, 6, 0) == 6 && memcmp(got, "answer", 6) == 0, "the client's answer");
    expect_name(left, true, path, "a client that was left");
    expect_error(left, 0, "a client that was left");
    CHECK(send(second, "2", 1, 0) == 1 && send(first, "1", 1, 0) == 1, "send: %s", strerror(errno));
    int accepted = MUST(accept(listener, NULL, NULL));
    expect(accepted, "1", "the first client that waited");
    expect_peer(accepted, me, "the first client that waited");
    accepted = MUST(accept(listener, NULL, NULL));
    expect(accepted, "2", "the second client that waited");
    MUST(fcntl(listener, F_SETFL, O_NONBLOCK));
    CHECK(accept(listener, NULL, NULL) < 0 && errno == EAGAIN, "more clients wait than there were");
    CHECK(connected(SOCK_STREAM, path) >= 0 && MUST(accept(listener, NULL, NULL)) >= 0, "the listener is not found by its path");
    expect_name(hidden, false, gone, "the unlinked listener");
    CHECK(lstat(gone, &stat) != 0 && get(hidden, SO_ACCEPTCONN) == 1, "the unlinked listener is there");
    expect_name(old_client, true, closed_abstract, "the client of a closed listener");
    expect_name(old_server, false, closed_abstract, "the server of a closed listener");
    CHECK(send(old_client, "old", 3, 0) == 3, "send: %s", strerror(errno));
    expect(old_server, "old", "the server of a closed listener");
    int late = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    CHECK(connect_to(late, closed_abstract) < 0 && errno == ECONNREFUSED, "somebody listens where nobody did");
    MUST(close(connected(SOCK_STREAM, abstract)));
    CHECK(MUST(accept(listed, NULL, NULL)) >= 0, "the abstract listener");
    expect_name(relative, false, "relative", "the socket with a relative name");
    nobody = connected(SOCK_DGRAM, "relative");
    CHECK(send(nobody, "hi", 2, 0) == 2, "send: %s", strerror(errno));
    expect(relative, "hi", "the socket with a relative name");

    MUST(close(family[0]));
    int status;
    CHECK(waitpid(kid, &status, 0) == kid && status == 0, "the child ended with %#x", status);
    guest_ok();
}
