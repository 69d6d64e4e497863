/*
 * Numbered records over TCP connections between two processes of this program, of which none, one or both are checkpointed.
 *
 *   stream DIR --serve 1                             listens, and says where by `say.port`
 *   stream DIR --connect PORT --connections N        makes N connections to it
 *   stream DIR --both 1 --connections N              serves in a child, and connects to it
 *   --kind K       what goes over the connections (see enum kind)
 *   --family 6     IPv6
 *   --address A    connect to this address instead of the loopback interface's
 *   --buffers B    sizes of the socket's buffers; as the kernel likes if not given
 *   --may-break 1  a connection that is reset is no failure: it is closed, and `say.lost` tells of the first one
 *
 * Each record follows from its connection, direction and number: who receives knows every byte that has to come, so nothing can
 * be lost, doubled or out of order, and any error of a connection is a failure. Nobody waits for an answer before sending more, and
 * every second connection is read more slowly than it is written: the queues of both directions are full.
 *
 * A step of the client means that data has moved on all of its connections.
 */
#include "guest.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum kind {
    ECHO, /* all that the client sends comes back */
    DOWN, /* the client has ended its direction after the first record; the server sends */
    UP,   /* the server has ended its direction after PROLOGUE records, which the client leaves unread; the client sends */
    UNKNOWN,
};

enum { LAST = 1u << 31, PROLOGUE = 100, CHUNK = 512, SLOWLY = 4096, MOST = 1024 };

struct record {
    uint32_t connection, kind;
    uint64_t number, random[2];
};

struct connection {
    int fd;
    uint32_t id, kind;
    bool serving;         /* this is the server's end */
    bool source;          /* this end makes up records */
    bool relay;           /* this end sends what it receives */
    bool heard_last, in_ended, out_ended, moved, closed;
    uint32_t events;      /* what epoll was asked for */
    uint64_t next_out, next_in;
    struct record in;     /* the one that is being received */
    size_t in_length;
    struct record out[CHUNK];
    size_t out_at, out_length; /* bytes of `out` that wait */
};

static struct connection *connections[MOST];
static size_t connection_count, closed_count;
static bool finishing, may_break;

static struct record record_of(uint32_t connection, uint32_t kind, bool from_server, uint64_t number) {
    struct record record = {.connection = connection, .kind = kind, .number = number};
    uint64_t state = (uint64_t)connection << 33 ^ (uint64_t)from_server << 32 ^ number * 0x9e3779b97f4a7c15u;
    for (int i = 0; i < 2; i++) record.random[i] = random_next(&state);
    return record;
}

static struct connection *add(int fd) {
    CHECK(connection_count < MOST, "too many connections");
    struct connection *new = calloc(1, sizeof *new);
    CHECK(new, "no memory");
    MUST(fcntl(fd, F_SETFL, O_NONBLOCK));
    new->fd = fd;
    return connections[connection_count++] = new;
}

/* The next of this end's own records; the last one if this is the end. */
static void make_records(struct connection *c, size_t count, bool last) {
    for (size_t i = 0; i < count; i++) c->out[i] = record_of(c->id, c->kind, c->serving, c->next_out++);
    if (last) c->out[count - 1].kind |= LAST;
    c->out_at = 0;
    c->out_length = count * sizeof(struct record);
}

/* What came has to be what the other end made up (or, for the client of an echo, this one). */
static void check_record(struct connection *c) {
    struct record expected = record_of(c->id, c->kind, c->kind == ECHO ? false : !c->serving, c->next_in);
    CHECK(!c->heard_last, "connection %u: a record after the last one", c->id);
    c->heard_last = c->in.kind & LAST;
    c->in.kind &= ~(uint32_t)LAST;
    CHECK(memcmp(&c->in, &expected, sizeof expected) == 0, "connection %u: record %lu of connection %u, kind %u, for record %lu", c->id,
          c->in.number, c->in.connection, c->in.kind, c->next_in);
    c->next_in++;
}

/* The first record says what the client wants. */
static void greet(struct connection *c) {
    c->id = c->in.connection;
    c->kind = c->in.kind;
    CHECK(c->kind < UNKNOWN, "a connection of kind %u", c->kind);
    c->relay = c->kind == ECHO;
    c->source = c->kind == DOWN;
    if (c->relay) {
        c->out[0] = c->in;
        c->out_length = sizeof c->in;
    } else {
        check_record(c);
    }
    if (c->kind == UP) make_records(c, PROLOGUE, false);
}

static void end(struct connection *c) {
    MUST(close(c->fd));
    c->closed = true;
    closed_count++;
}

/* Which ways this end would go on: POLLIN and POLLOUT, which are the same numbers for epoll. */
static uint32_t wants(const struct connection *c) {
    bool waits = c->out_at < c->out_length, left_unread = !finishing && (c->serving ? c->kind == DOWN : c->kind == UP);
    bool out = !c->out_ended && (waits || c->source), in = !c->in_ended && !left_unread && !(c->relay && waits);
    return (in ? POLLIN : 0) | (out ? POLLOUT : 0);
}

/* Whether a connection is allowed to end with the error that it has just shown. */
static bool breaks(struct connection *c) {
    if (!may_break || (errno != ECONNRESET && errno != EPIPE)) return false;
    guest_link("say.lost", strerror(errno));
    end(c);
    return true;
}

static void send_some(struct connection *c) {
    for (;;) {
        if (c->out_at == c->out_length) {
            if (!c->source) return;
            if (finishing) c->source = false;
            make_records(c, finishing ? 1 : CHUNK, finishing);
        }
        ssize_t part = send(c->fd, (char *)c->out + c->out_at, c->out_length - c->out_at, MSG_NOSIGNAL);
        if (part < 0 && errno == EAGAIN) return;
        if (part < 0 && breaks(c)) return;
        CHECK(part > 0, "connection %u: send: %s", c->id, strerror(errno));
        c->out_at += (size_t)part;
        if (c->kind == UP) c->moved = true;
    }
}

static void receive_some(struct connection *c) {
    char part[16384];
    bool slowly = c->id % 2 && !c->serving && !finishing;
    for (size_t left = slowly ? SLOWLY : 32 * sizeof part; left;) {
        bool greeting = c->serving && c->kind == UNKNOWN;
        size_t most = greeting ? sizeof c->in - c->in_length : left < sizeof part ? left : sizeof part;
        ssize_t length = recv(c->fd, part, most, 0);
        if (length < 0 && errno == EAGAIN) return;
        if (length < 0 && breaks(c)) return;
        CHECK(length >= 0, "connection %u: recv: %s", c->id, strerror(errno));
        if (length == 0) {
            bool needs_last = c->serving ? c->kind == UP : c->kind != UP;
            CHECK(c->heard_last || !needs_last, "connection %u: it ends after record %lu", c->id, c->next_in);
            c->in_ended = true;
            return;
        }
        c->moved = true;
        left -= (size_t)length < left ? (size_t)length : left;
        if (c->relay) {
            memcpy(c->out, part, (size_t)length);
            c->out_at = 0;
            c->out_length = (size_t)length;
            return;
        }
        for (ssize_t at = 0; at < length;) {
            size_t piece = sizeof c->in - c->in_length;
            if (piece > (size_t)(length - at)) piece = (size_t)(length - at);
            memcpy((char *)&c->in + c->in_length, part + at, piece);
            at += (ssize_t)piece;
            if ((c->in_length += piece) < sizeof c->in) continue;
            c->in_length = 0;
            if (greeting) greet(c);
            else check_record(c);
        }
        if (greeting) return;
    }
}

/* Ends this end's direction when there is nothing more to say, and the connection when both have ended. */
static void end_when_done(struct connection *c) {
    bool all_sent = !c->source && c->out_at == c->out_length && c->kind != UNKNOWN;
    if (all_sent && !c->out_ended && (!c->relay || c->in_ended)) {
        MUST(shutdown(c->fd, SHUT_WR));
        c->out_ended = true;
    }
    if (!c->out_ended || !c->in_ended) return;
    CHECK(c->in_length == 0, "connection %u: it ends within a record", c->id);
    if (!c->serving && c->kind == UP) CHECK(c->next_in == PROLOGUE, "connection %u: %lu records before its end", c->id, c->next_in);
    end(c);
}

static void work(struct connection *c, uint32_t ready) {
    if (ready & (POLLIN | POLLERR | POLLHUP)) receive_some(c);
    if (!c->closed && wants(c) & POLLOUT) send_some(c);
    if (!c->closed) end_when_done(c);
}

/* ---------------------------------------------------------------------------------------------------------------- the server */

static int listen_on(int family, int buffers) {
    struct sockaddr_storage any = {.ss_family = (sa_family_t)family};
    int fd = MUST(socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0));
    if (buffers) {
        MUST(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffers, sizeof buffers));
        MUST(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffers, sizeof buffers));
    }
    MUST(bind(fd, (struct sockaddr *)&any, family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6)));
    MUST(listen(fd, MOST));
    return fd;
}

static uint16_t port_of(int fd) {
    struct sockaddr_in6 name; /* the port is at the same place in IPv4 */
    socklen_t length = sizeof name;
    MUST(getsockname(fd, (struct sockaddr *)&name, &length));
    return ntohs(name.sin6_port);
}

static void watch(int epoll, struct connection *c, int how) {
    c->events = wants(c);
    struct epoll_event event = {.events = c->events, .data.ptr = c};
    MUST(epoll_ctl(epoll, how, c->fd, &event));
}

static void serve(int listener, bool alone) {
    int epoll = MUST(epoll_create1(0));
    struct epoll_event events[64] = {{.events = EPOLLIN}};
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &events[0]));
    while (!finishing || connection_count == 0 || closed_count < connection_count) {
        int count = epoll_wait(epoll, events, 64, 20);
        CHECK(count >= 0 || errno == EINTR, "epoll_wait: %s", strerror(errno)); /* a stop ends it: signal(7) */
        for (int i = 0, fd; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (c) work(c, events[i].events);
            else
                while ((fd = accept(listener, NULL, NULL)) >= 0) {
                    c = add(fd);
                    c->serving = true;
                    c->kind = UNKNOWN;
                    watch(epoll, c, EPOLL_CTL_ADD);
                }
        }
        bool begins_to_finish = !finishing && guest_finishing();
        finishing |= begins_to_finish;
        for (size_t i = 0; i < connection_count; i++) {
            struct connection *c = connections[i];
            if (!c->closed && c->events != wants(c)) watch(epoll, c, EPOLL_CTL_MOD);
        }
        if (alone) guest_step();
    }
}

/* ---------------------------------------------------------------------------------------------------------------- the client */

static const char *text_option(int argc, char **argv, const char *name, const char *otherwise) {
    for (int i = 1; i + 1 < argc; i++)
        if (strncmp(argv[i], "--", 2) == 0 && strcmp(argv[i] + 2, name) == 0) return argv[i + 1];
    return otherwise;
}

static void connect_all(int argc, char **argv, int family, uint16_t port, int buffers) {
    struct sockaddr_storage to = {.ss_family = (sa_family_t)family};
    const char *address = text_option(argc, argv, "address", family == AF_INET ? "127.0.0.1" : "::1");
    struct sockaddr_in *four = (void *)&to;
    struct sockaddr_in6 *six = (void *)&to;
    four->sin_port = htons(port); /* at the same place in IPv6 */
    CHECK(inet_pton(family, address, family == AF_INET ? (void *)&four->sin_addr : &six->sin6_addr) == 1, "address %s", address);
    long count = guest_option(argc, argv, "connections", 1), kind = guest_option(argc, argv, "kind", ECHO);
    for (long i = 0; i < count; i++) {
        int fd = MUST(socket(family, SOCK_STREAM, 0));
        if (buffers) {
            MUST(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffers, sizeof buffers));
            MUST(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffers, sizeof buffers));
        }
        MUST(connect(fd, (struct sockaddr *)&to, family == AF_INET ? sizeof *four : sizeof *six));
        struct connection *c = add(fd);
        c->id = (uint32_t)i + 1;
        c->kind = (uint32_t)kind;
        c->source = kind != DOWN;
        make_records(c, 1, false); /* the greeting */
    }
}

static void stream(void) {
    static struct pollfd polls[MOST];
    while (closed_count < connection_count) {
        for (size_t i = 0; i < connection_count; i++) {
            const struct connection *c = connections[i];
            polls[i] = (struct pollfd){.fd = c->closed ? -1 : c->fd, .events = (short)wants(c)};
        }
        MUST(poll(polls, connection_count, 20));
        finishing |= guest_finishing();
        bool all_moved = true;
        for (size_t i = 0; i < connection_count; i++) {
            struct connection *c = connections[i];
            if (!c->closed && polls[i].revents) work(c, (uint32_t)polls[i].revents);
            all_moved &= c->moved;
        }
        if (all_moved) {
            for (size_t i = 0; i < connection_count; i++) connections[i]->moved = false;
            guest_step();
        }
        guest_sleep_ms(1);
    }
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    int family = guest_option(argc, argv, "family", 4) == 6 ? AF_INET6 : AF_INET, buffers = (int)guest_option(argc, argv, "buffers", 0);
    uint16_t port = (uint16_t)guest_option(argc, argv, "connect", 0);
    may_break = guest_option(argc, argv, "may-break", 0);
    if (port) {
        connect_all(argc, argv, family, port, buffers);
        guest_ready();
        stream();
        guest_ok();
    }
    int listener = listen_on(family, buffers);
    if (!guest_option(argc, argv, "both", 0)) {
        char text[8];
        snprintf(text, sizeof text, "%u", port_of(listener));
        guest_link("say.port", text);
        guest_ready();
        serve(listener, true);
        guest_ok();
    }
    pid_t child = MUST(fork());
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        serve(listener, false);
        _exit(0);
    }
    connect_all(argc, argv, family, port_of(listener), buffers);
    MUST(close(listener));
    guest_ready();
    stream();
    int status = 0;
    MUST(waitpid(child, &status, 0));
    CHECK(status == 0, "the server ended with %d", status);
    guest_ok();
}
