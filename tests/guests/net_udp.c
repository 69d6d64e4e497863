/*
 * UDP over the loopback interface: echoes, queues with their senders, sockets that share a port, options, filters, what was shut
 * down, UDP-Lite. Everything is checked when the guest is told to finish, and some of it in each step.
 */
#include "net.h"

#include <linux/filter.h>
#include <netinet/udp.h>

#define SENDERS 6
#define GROUP 3

/* A socket, and what it should have in its queue. */
struct queue {
    int fd, sender[2];
    uint64_t next, oldest;
};

static size_t size_of(uint64_t n) {
    static const size_t sizes[] = {8, 1400, 9, 0, 9000, 64, 15000};
    return sizes[n % ARRAY_LEN(sizes)];
}

static void fill(unsigned char *bytes, uint64_t n) {
    for (size_t i = 0; i < size_of(n); i++) bytes[i] = (unsigned char)(n * 31 + i * 7);
}

static void put(struct queue *queue) {
    static unsigned char bytes[16384];
    fill(bytes, queue->next);
    struct sockaddr_storage name = name_of(queue->fd);
    if (name.ss_family == AF_INET6 && IN6_IS_ADDR_UNSPECIFIED(&((struct sockaddr_in6 *)&name)->sin6_addr))
        name = at(AF_INET, NULL, port_of(name));
    send_to(queue->sender[queue->next % 2], bytes, size_of(queue->next), name);
    queue->next++;
}

static void take(struct queue *queue, const char *what) {
    static unsigned char bytes[16384], got[16384];
    struct sockaddr_storage from = {0};
    socklen_t length = sizeof from;
    uint64_t n = queue->oldest++;
    ssize_t size = recvfrom(queue->fd, got, sizeof got, MSG_DONTWAIT, (struct sockaddr *)&from, &length);
    CHECK(size == (ssize_t)size_of(n), "%s: datagram %lu has %zd bytes (%s)", what, n, size, strerror(errno));
    fill(bytes, n);
    CHECK(memcmp(bytes, got, (size_t)size) == 0, "%s: datagram %lu is another", what, n);
    CHECK(port_of(from) == port_of(name_of(queue->sender[n % 2])), "%s: datagram %lu is of port %d", what, n, port_of(from));
    if (from.ss_family == AF_INET)
        CHECK(((struct sockaddr_in *)&from)->sin_addr.s_addr == htonl(INADDR_LOOPBACK), "%s: datagram %lu is of another host", what, n);
}

static struct queue make_queue(int family, const char *ip, int protocol, int sender_family) {
    struct queue queue = {.fd = bound(family, SOCK_DGRAM, protocol, ip, 0)};
    for (int i = 0; i < 2; i++) queue.sender[i] = bound(sender_family, SOCK_DGRAM, protocol, NULL, 0);
    for (int i = 0; i < 9; i++) put(&queue);
    return queue;
}

/* Two ends that talk. */
struct echo {
    int client, server;
    struct sockaddr_storage names[2];
};

static struct echo make_echo(int family, int protocol) {
    struct echo echo = {MUST(socket(family, SOCK_DGRAM, protocol)), bound(family, SOCK_DGRAM, protocol, NULL, 0), {{0}}};
    echo.names[1] = name_of(echo.server);
    connect_to(echo.client, echo.names[1]);
    echo.names[0] = name_of(echo.client);
    return echo;
}

static void talk(struct echo *echo, uint64_t n, const char *what) {
    uint64_t got = 0;
    struct sockaddr_storage from = {0};
    socklen_t length = sizeof from;
    CHECK(send(echo->client, &n, sizeof n, 0) == sizeof n, "%s: sending: %s", what, strerror(errno));
    CHECK(becomes_readable(echo->server), "%s: nothing arrives", what);
    CHECK(recvfrom(echo->server, &got, sizeof got, 0, (struct sockaddr *)&from, &length) == sizeof got && got == n, "%s: %lu for %lu", what, got, n);
    CHECK(memcmp(&from, &echo->names[0], length) == 0, "%s: another client", what);
    send_to(echo->server, &n, sizeof n, from);
    CHECK(becomes_readable(echo->client), "%s: no answer", what);
    CHECK(recv(echo->client, &got, sizeof got, 0) == sizeof got && got == n, "%s: the answer is %lu for %lu", what, got, n);
}

static void check_echo(const struct echo *echo, const char *what) {
    struct sockaddr_storage now = name_of(echo->client), peer = {0};
    socklen_t length = sizeof peer;
    CHECK(memcmp(&now, &echo->names[0], sizeof now) == 0, "%s: the client has another address", what);
    now = name_of(echo->server);
    CHECK(memcmp(&now, &echo->names[1], sizeof now) == 0, "%s: the server has another address", what);
    MUST(getpeername(echo->client, (struct sockaddr *)&peer, &length));
    CHECK(memcmp(&peer, &echo->names[1], sizeof peer) == 0, "%s: the client has another server", what);
    CHECK(getpeername(echo->server, (struct sockaddr *)&peer, &length) == -1 && errno == ENOTCONN, "%s: the server is connected", what);
}

/* Sockets that share a port: which of them gets what a sender sends depends on that sender. */
struct group {
    int fds[GROUP], senders[SENDERS], of[SENDERS];
};

static int who_got(const struct group *group) {
    for (int i = 0; i < GROUP; i++)
        if (is_readable(group->fds[i])) return i;
    guest_fail("nobody got it");
}

static struct group make_group(void) {
    struct group group = {0};
    for (int i = 0; i < GROUP; i++) {
        int fd = group.fds[i] = MUST(socket(AF_INET, SOCK_DGRAM, 0));
        set(fd, SOL_SOCKET, SO_REUSEPORT, 1);
        struct sockaddr_storage name = i ? name_of(group.fds[0]) : at(AF_INET, "0.0.0.0", 0);
        MUST(bind(fd, (struct sockaddr *)&name, sizeof name));
    }
    for (int i = 0; i < SENDERS; i++) {
        char byte = 0;
        group.senders[i] = bound(AF_INET, SOCK_DGRAM, 0, NULL, 0);
        send_to(group.senders[i], &byte, 1, at(AF_INET, NULL, port_of(name_of(group.fds[0]))));
        group.of[i] = who_got(&group);
        MUST(recv(group.fds[group.of[i]], &byte, 1, 0));
    }
    for (int i = 0; i < SENDERS; i++) {
        char byte = (char)i;
        send_to(group.senders[i], &byte, 1, at(AF_INET, NULL, port_of(name_of(group.fds[0]))));
    }
    return group;
}

static void check_group(const struct group *group) {
    for (int i = 0; i < SENDERS; i++) {
        char byte = -1;
        CHECK(recv(group->fds[group->of[i]], &byte, 1, MSG_DONTWAIT) == 1 && byte == i, "group: %d for %d (%s)", byte, i, strerror(errno));
    }
    for (int i = 0; i < GROUP; i++) CHECK(!is_readable(group->fds[i]), "group: more at %d", i);
    for (int i = 0; i < SENDERS; i++) {
        char byte = (char)i;
        send_to(group->senders[i], &byte, 1, at(AF_INET, NULL, port_of(name_of(group->fds[0]))));
        CHECK(who_got(group) == group->of[i], "group: sender %d reaches %d and not %d", i, who_got(group), group->of[i]);
        CHECK(recv(group->fds[group->of[i]], &byte, 1, MSG_DONTWAIT) == 1, "group: nothing there");
    }
}

/* Lets in what begins with 'y', behind a header. */
static void filter(int fd, unsigned header) {
    struct sock_filter code[] = {BPF_STMT(BPF_LD | BPF_B | BPF_ABS, header), BPF_JUMP(BPF_JMP | BPF_JEQ, 'y', 0, 1), BPF_STMT(BPF_RET, 0xffff),
                                 BPF_STMT(BPF_RET, 0)};
    struct sock_fprog program = {ARRAY_LEN(code), code};
    MUST(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
    set(fd, SOL_SOCKET, SO_LOCK_FILTER, 1);
}

static void check_filtered(int fd, int sender) {
    char byte = 0;
    MUST(send(sender, "x", 1, 0));
    CHECK(!is_readable(fd), "the filter lets x in");
    MUST(send(sender, "y", 1, 0));
    CHECK(recv(fd, &byte, 1, MSG_DONTWAIT) == 1 && byte == 'y', "the filter does not let y in");
    CHECK(setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &byte, sizeof(int)) == -1 && errno == EPERM, "the filter is not locked");
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    struct echo echo[3] = {make_echo(AF_INET, 0), make_echo(AF_INET6, 0), make_echo(AF_INET, IPPROTO_UDPLITE)};
    struct queue queues[4] = {make_queue(AF_INET, "0.0.0.0", 0, AF_INET), make_queue(AF_INET6, "::1", 0, AF_INET6),
                              make_queue(AF_INET6, "::", 0, AF_INET), make_queue(AF_INET, NULL, IPPROTO_UDPLITE, AF_INET)};
    static const char *names[] = {"queue", "queue of IPv6", "queue of both", "queue of UDP-Lite"};
    /* Connected after something had come from somebody else. */
    struct queue connected = make_queue(AF_INET, NULL, 0, AF_INET);
    connect_to(connected.fd, name_of(connected.sender[0]));
    struct group group = make_group();
    /* More than the kernel puts into one buffer. */
    static unsigned char large[40000], got[40000];
    for (size_t i = 0; i < sizeof large; i++) large[i] = (unsigned char)(i * 13);
    int big = bound(AF_INET, SOCK_DGRAM, 0, NULL, 0);
    send_to(big, large, sizeof large, name_of(big));
    int filtered = bound(AF_INET, SOCK_DGRAM, 0, NULL, 0), filterer = MUST(socket(AF_INET, SOCK_DGRAM, 0)), unix_ends[2];
    connect_to(filterer, name_of(filtered));
    filter(filtered, 8);
    MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, unix_ends));
    filter(unix_ends[0], 0);
    int bare = MUST(socket(AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK, 0));
    set(bare, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    set(bare, SOL_SOCKET, SO_BROADCAST, 1);
    int knobs = bound(AF_INET, SOCK_DGRAM, 0, "127.0.0.2", 0);
    set(knobs, SOL_SOCKET, SO_RCVBUF, 50000);
    set(knobs, SOL_SOCKET, SO_TIMESTAMPNS, 1);
    set(knobs, SOL_SOCKET, SO_PEEK_OFF, 3);
    set(knobs, IPPROTO_IP, IP_TOS, 0x20);
    set(knobs, SOL_SOCKET, SO_PRIORITY, 4); /* which the type of service changes */
    set(knobs, IPPROTO_IP, IP_TTL, 77);
    set(knobs, IPPROTO_IP, IP_PKTINFO, 1);
    set(knobs, IPPROTO_IP, IP_MULTICAST_TTL, 5);
    set(knobs, IPPROTO_UDP, UDP_SEGMENT, 1000);
    set(knobs, IPPROTO_UDP, UDP_CORK, 1);
    int size = get(knobs, SOL_SOCKET, SO_RCVBUF);
    struct echo half[2] = {make_echo(AF_INET, 0), make_echo(AF_INET, 0)};
    MUST(shutdown(half[0].client, SHUT_WR));
    MUST(shutdown(half[1].client, SHUT_RD));
    guest_ready();
    for (uint64_t n = 0; !guest_finishing(); n++) {
        talk(&echo[0], n, "echo");
        talk(&echo[1], n, "echo over IPv6");
        talk(&echo[2], n, "echo over UDP-Lite");
        for (int i = 0; i < 4; i++) {
            put(&queues[i]);
            take(&queues[i], names[i]);
        }
        guest_step();
        guest_sleep_ms(2);
    }
    check_echo(&echo[0], "echo");
    check_echo(&echo[1], "echo over IPv6");
    check_echo(&echo[2], "echo over UDP-Lite");
    for (int i = 0; i < 4; i++) {
        while (queues[i].oldest < queues[i].next) take(&queues[i], names[i]);
        CHECK(!is_readable(queues[i].fd), "%s: more than was sent", names[i]);
    }
    while (connected.oldest < connected.next) take(&connected, "the connected one");
    send_to(connected.sender[1], "z", 1, name_of(connected.fd));
    CHECK(!is_readable(connected.fd), "the connected one hears others");
    send_to(connected.sender[0], "z", 1, name_of(connected.fd));
    CHECK(becomes_readable(connected.fd), "the connected one hears nobody");
    check_group(&group);
    CHECK(recv(big, got, sizeof got, MSG_DONTWAIT) == sizeof got, "the large one: %s", strerror(errno));
    CHECK(memcmp(got, large, sizeof got) == 0, "the large one is another");
    check_filtered(filtered, filterer);
    check_filtered(unix_ends[0], unix_ends[1]);
    CHECK(get(bare, IPPROTO_IPV6, IPV6_V6ONLY) == 1 && get(bare, SOL_SOCKET, SO_BROADCAST) == 1, "options of the one without an address");
    CHECK(fcntl(bare, F_GETFL) & O_NONBLOCK && port_of(name_of(bare)) == 0, "the one without an address");
    CHECK(get(knobs, SOL_SOCKET, SO_RCVBUF) == size, "SO_RCVBUF");
    CHECK(get(knobs, SOL_SOCKET, SO_PRIORITY) == 4, "SO_PRIORITY");
    CHECK(get(knobs, SOL_SOCKET, SO_TIMESTAMPNS) == 1, "SO_TIMESTAMPNS");
    CHECK(get(knobs, SOL_SOCKET, SO_PEEK_OFF) == 3, "SO_PEEK_OFF");
    CHECK(get(knobs, IPPROTO_IP, IP_TOS) == 0x20 && get(knobs, IPPROTO_IP, IP_TTL) == 77, "IP_TOS, IP_TTL");
    CHECK(get(knobs, IPPROTO_IP, IP_PKTINFO) == 1 && get(knobs, IPPROTO_IP, IP_MULTICAST_TTL) == 5, "IP_PKTINFO, IP_MULTICAST_TTL");
    CHECK(get(knobs, IPPROTO_UDP, UDP_SEGMENT) == 1000 && get(knobs, IPPROTO_UDP, UDP_CORK) == 1, "UDP_SEGMENT, UDP_CORK");
    CHECK(get(big, SOL_SOCKET, SO_PEEK_OFF) == -1, "SO_PEEK_OFF that was not set");
    CHECK(send(half[0].client, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "the half that was shut down sends");
    send_to(half[0].server, "x", 1, half[0].names[0]);
    CHECK(becomes_readable(half[0].client), "the half that was shut down hears nothing");
    CHECK(recv(half[1].client, got, 1, 0) == 0, "the deaf one waits");
    CHECK(send(half[1].client, "x", 1, 0) == 1 && becomes_readable(half[1].server), "the deaf one does not send");
    guest_ok();
}
