/*
 * TCP over the loopback interface, IPv4 and IPv6: a server that echoes numbered records to itself in a child, queues in both
 * directions, a full sending queue, half-closed and orphaned connections, listeners with options and a client that waits.
 */
#include "guest.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

struct link {
    int listener, client, server;
    struct sockaddr_storage at[3];
};

static void name_of(int fd, struct sockaddr_storage *name) {
    socklen_t length = sizeof *name;
    memset(name, 0, sizeof *name);
    MUST(getsockname(fd, (struct sockaddr *)name, &length));
}

static int listener_of(int family) {
    struct sockaddr_storage local = {.ss_family = (sa_family_t)family};
    if (family == AF_INET)
        ((struct sockaddr_in *)&local)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    else
        ((struct sockaddr_in6 *)&local)->sin6_addr = in6addr_loopback;
    int fd = MUST(socket(family, SOCK_STREAM, 0));
    MUST(bind(fd, (struct sockaddr *)&local, sizeof local));
    MUST(listen(fd, 7));
    return fd;
}

static int connect_to(int listener) {
    struct sockaddr_storage name;
    name_of(listener, &name);
    int fd = MUST(socket(name.ss_family, SOCK_STREAM, 0));
    MUST(connect(fd, (struct sockaddr *)&name, sizeof name));
    return fd;
}

static struct link make_link(int family) {
    struct link link = {.listener = listener_of(family)};
    link.client = connect_to(link.listener);
    link.server = MUST(accept(link.listener, NULL, NULL));
    const int fds[3] = {link.listener, link.client, link.server};
    for (int i = 0; i < 3; i++) name_of(fds[i], &link.at[i]);
    return link;
}

static void check_link(const struct link *link, const char *what) {
    const int fds[3] = {link->listener, link->client, link->server};
    struct sockaddr_storage now;
    for (int i = 0; i < 3; i++) {
        name_of(fds[i], &now);
        CHECK(memcmp(&now, &link->at[i], sizeof now) == 0, "%s: another address of socket %d", what, i);
        if (i == 0) continue;
        socklen_t length = sizeof now;
        memset(&now, 0, sizeof now);
        MUST(getpeername(fds[i], (struct sockaddr *)&now, &length));
        CHECK(memcmp(&now, &link->at[3 - i], sizeof now) == 0, "%s: another peer of socket %d", what, i);
    }
    struct tcp_info info;
    socklen_t length = sizeof info;
    MUST(getsockopt(link->listener, IPPROTO_TCP, TCP_INFO, &info, &length));
    CHECK(info.tcpi_state == TCP_LISTEN && info.tcpi_sacked == 7, "%s: listener in state %d, backlog %u", what, info.tcpi_state, info.tcpi_sacked);
}

static void set(int fd, int level, int name, int value) { MUST(setsockopt(fd, level, name, &value, sizeof value)); }
static int get(int fd, int level, int name) {
    int value = -1;
    socklen_t length = sizeof value;
    MUST(getsockopt(fd, level, name, &value, &length));
    return value;
}
static int pending(int fd) {
    int n = -1;
    MUST(ioctl(fd, FIONREAD, &n));
    return n;
}
static int state(int fd) {
    struct pollfd one = {.fd = fd, .events = POLLIN | POLLOUT | POLLRDHUP};
    MUST(poll(&one, 1, 0));
    return one.revents;
}
static void send_number(int fd, uint64_t n) { CHECK(send(fd, &n, sizeof n, MSG_NOSIGNAL) == sizeof n, "sending %lu: %s", n, strerror(errno)); }
static void expect_number(int fd, uint64_t n, const char *what) {
    uint64_t got = 0;
    ssize_t length = recv(fd, &got, sizeof got, MSG_WAITALL);
    CHECK(length == sizeof got && got == n, "%s: %zd bytes, %lu for %lu (%s)", what, length, got, n, strerror(errno));
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    struct link echo[2] = {make_link(AF_INET), make_link(AF_INET6)}, queues = make_link(AF_INET6);
    struct link full = make_link(AF_INET), half = make_link(AF_INET), orphan = make_link(AF_INET);
    pid_t child = MUST(fork());
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        MUST(close(orphan.server));
        for (uint64_t n;;)
            for (int i = 0; i < 2; i++) {
                if (recv(echo[i].server, &n, sizeof n, MSG_WAITALL) != sizeof n) _exit(1);
                if (send(echo[i].server, &n, sizeof n, MSG_NOSIGNAL) != sizeof n) _exit(2);
            }
    }
    for (uint64_t n = 0; n < 100; n++) send_number(queues.client, n);
    for (uint64_t n = 0; n < 100; n++) send_number(queues.server, n + 1000);
    uint64_t next = 100, oldest = 0, filled = 0;
    set(full.client, SOL_SOCKET, SO_SNDBUF, 65536);
    MUST(fcntl(full.client, F_SETFL, O_NONBLOCK));
    ssize_t part;
    while ((part = send(full.client, &filled, sizeof filled, MSG_NOSIGNAL)) == sizeof filled) filled++;
    send_number(half.client, 77);
    send_number(half.server, 78);
    MUST(shutdown(half.client, SHUT_WR));
    send_number(orphan.server, 79);
    MUST(close(orphan.server));
    int bare = MUST(socket(AF_INET6, SOCK_STREAM, 0)), bound = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    MUST(bind(bound, (struct sockaddr *)&any, sizeof any));
    struct sockaddr_storage bound_at, now;
    name_of(bound, &bound_at);
    int waited_for = listener_of(AF_INET), waits = connect_to(waited_for);
    set(echo[0].client, IPPROTO_TCP, TCP_NODELAY, 1);
    set(echo[0].client, SOL_SOCKET, SO_KEEPALIVE, 1);
    set(echo[0].client, IPPROTO_TCP, TCP_KEEPIDLE, 77);
    set(echo[0].client, IPPROTO_TCP, TCP_USER_TIMEOUT, 12345);
    set(echo[0].client, SOL_SOCKET, SO_RCVBUF, 50000);
    set(echo[0].client, IPPROTO_IP, IP_TOS, 0x10);
    set(echo[0].client, SOL_SOCKET, SO_PRIORITY, 3);
    set(waited_for, SOL_SOCKET, SO_REUSEADDR, 1);
    set(waited_for, IPPROTO_TCP, TCP_DEFER_ACCEPT, 0);
    set(bare, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    struct linger linger = {1, 9}, lingers;
    MUST(setsockopt(bare, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
    int size_before = get(echo[0].client, SOL_SOCKET, SO_RCVBUF), reuse_before = get(echo[1].client, SOL_SOCKET, SO_REUSEADDR);
    guest_ready();
    for (uint64_t n = 0; !guest_finishing(); n++) {
        for (int i = 0; i < 2; i++) {
            send_number(echo[i].client, n);
            expect_number(echo[i].client, n, "echo");
        }
        send_number(queues.client, next);
        send_number(queues.server, next + 1000);
        next++;
        expect_number(queues.server, oldest, "queue of the server");
        expect_number(queues.client, oldest + 1000, "queue of the client");
        oldest++;
        CHECK(!(state(full.client) & (POLLERR | POLLHUP)), "the full one: %x", state(full.client));
        CHECK(state(half.client) == (POLLIN | POLLOUT), "the half-closed one: %x", state(half.client));
        CHECK((state(half.server) & ~POLLOUT) == (POLLIN | POLLRDHUP), "the other half: %x", state(half.server));
        guest_step();
        guest_sleep_ms(2);
    }
    check_link(&echo[0], "echo");
    check_link(&echo[1], "echo over IPv6");
    check_link(&queues, "queues");
    check_link(&full, "full");
    check_link(&half, "half");
    for (; oldest < next; oldest++) {
        expect_number(queues.server, oldest, "rest of the server");
        expect_number(queues.client, oldest + 1000, "rest of the client");
    }
    CHECK(pending(queues.server) == 0 && pending(queues.client) == 0, "more than the rest");
    for (uint64_t n = 0; n < filled; n++) expect_number(full.server, n, "the full one");
    if (part > 0) CHECK(recv(full.server, &next, (size_t)part, MSG_WAITALL) == part, "the last bytes of the full one");
    CHECK(pending(full.server) == 0, "more than was sent");
    CHECK(fcntl(full.client, F_GETFL) & O_NONBLOCK, "the full one blocks");
    expect_number(half.server, 77, "half");
    CHECK(recv(half.server, &next, 1, 0) == 0, "half has no end");
    send_number(half.server, 80);
    expect_number(half.client, 78, "half");
    expect_number(half.client, 80, "half");
    CHECK(send(half.client, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "half sends");
    expect_number(orphan.client, 79, "orphan");
    CHECK(recv(orphan.client, &next, 1, 0) == 0, "the orphan has no end");
    name_of(bound, &now);
    CHECK(memcmp(&now, &bound_at, sizeof now) == 0, "bound to another address");
    CHECK(fcntl(bound, F_GETFL) & O_NONBLOCK, "the bound one blocks");
    send_number(waits, 81);
    int accepted = MUST(accept(waited_for, NULL, NULL));
    expect_number(accepted, 81, "the one that waited");
    CHECK(get(echo[0].client, IPPROTO_TCP, TCP_NODELAY) == 1, "TCP_NODELAY");
    CHECK(get(echo[0].client, SOL_SOCKET, SO_KEEPALIVE) == 1 && get(echo[0].client, IPPROTO_TCP, TCP_KEEPIDLE) == 77, "keepalive");
    CHECK(get(echo[0].client, IPPROTO_TCP, TCP_USER_TIMEOUT) == 12345, "TCP_USER_TIMEOUT");
    CHECK(get(echo[0].client, SOL_SOCKET, SO_RCVBUF) == size_before, "SO_RCVBUF");
    CHECK(get(echo[0].client, SOL_SOCKET, SO_PRIORITY) == 3, "SO_PRIORITY");
    CHECK(get(echo[0].client, IPPROTO_IP, IP_TOS) == 0x10, "IP_TOS");
    CHECK(get(echo[1].client, SOL_SOCKET, SO_REUSEADDR) == reuse_before, "SO_REUSEADDR that was not set");
    CHECK(get(waited_for, SOL_SOCKET, SO_REUSEADDR) == 1, "SO_REUSEADDR");
    CHECK(get(bare, IPPROTO_IPV6, IPV6_V6ONLY) == 1, "IPV6_V6ONLY");
    socklen_t length = sizeof lingers;
    MUST(getsockopt(bare, SOL_SOCKET, SO_LINGER, &lingers, &length));
    CHECK(lingers.l_onoff == 1 && lingers.l_linger == 9, "SO_LINGER");
    kill(child, SIGKILL);
    MUST(waitpid(child, NULL, 0));
    guest_ok();
}
