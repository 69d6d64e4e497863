/*
 * Random operations on descriptors and sockets, from a fixed seed: `random_files DIR [--seed N]`. A step is one operation.
 *
 * The root does them. Children that have a copy of its table, or share it, or have executed another program, come and go and hold
 * open what the root closes. While DIR/go.1 exists nothing is done but to count steps.
 *
 * A model says what each descriptor and each open file must be like; at the end everything is compared with it.
 */
#include "guest.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

enum kind { NONE, PLAIN, DIRECTORY, NULL_DEVICE, NAME_ONLY, READER, WRITER, COUNTER, TIMER, SIGNALS, SET, LOCAL, TCP, LISTENER };

#define OBJECTS 96
#define SLOTS 128
#define CHILDREN 3
#define WATCHES 16

/* An open file description. */
struct object {
    enum kind kind;
    int references; /* slots, children's tables, messages */
    int other;      /* the other end */
    int flags;      /* as F_GETFL shows them */
    off_t position;
    char path[64];
    bool unlinked, locked, owned, watched, shut, in_flight;
    uint64_t count;             /* of a counter */
    uint64_t sent, got;         /* bytes sent to it, and read from it */
    int carried;                /* what the last byte sent to it carries; -1 for nothing */
    int port;                   /* of a listener */
    int keep_alive, no_delay, idle; /* options of a TCP socket */
    struct watch {
        int fd, object;
        uint32_t events;
    } watches[WATCHES];
    int watching;
};

static struct object objects[OBJECTS];
static struct slot {
    int object; /* -1: free */
    int fd;
    bool cloexec;
} slots[SLOTS];
static struct child {
    pid_t pid;
    bool shares;
    int held[OBJECTS];
} children[CHILDREN];
static uint64_t seed;
static int files_made, folder;

static int below(int bound) { return (int)random_below(&seed, (uint64_t)bound); }
static unsigned char byte_of(int object, uint64_t number) { return (unsigned char)(number * 31 + (uint64_t)object * 7 + 1); }

static const char *path_in(char out[static PATH_MAX], const char *name) {
    char relative[PATH_MAX];
    snprintf(relative, sizeof relative, "folder.%d/%s", folder, name);
    return guest_path(out, relative);
}

/* ------------------------------------------------------------------------------------------------- the model's bookkeeping */

static int free_object(void) {
    for (int i = 0; i < OBJECTS; i++)
        if (objects[i].kind == NONE) return i;
    return -1;
}

static int free_slots(int wanted) {
    int free = 0;
    for (int i = 0; i < SLOTS; i++) free += slots[i].object < 0;
    return free >= wanted;
}

static int add_slot(int fd, int object, bool cloexec) {
    for (int i = 0; i < SLOTS; i++)
        if (slots[i].object < 0) {
            slots[i] = (struct slot){object, fd, cloexec};
            objects[object].references++;
            return i;
        }
    guest_fail("the model is full");
}

static int new_object(enum kind kind, int fd) {
    int i = free_object();
    CHECK(i >= 0, "the model has no room for another object");
    objects[i] = (struct object){.kind = kind, .other = -1, .carried = -1, .flags = MUST(fcntl(fd, F_GETFL))};
    return i;
}

/* A slot of a random object that has one of these kinds; -1 if there is none. */
static int slot_of(bool (*fits)(const struct object *)) {
    int start = below(SLOTS);
    for (int i = 0; i < SLOTS; i++) {
        int at = (start + i) % SLOTS;
        if (slots[at].object >= 0 && fits(&objects[slots[at].object])) return at;
    }
    return -1;
}

static int slot_with(int object) {
    for (int i = 0; i < SLOTS; i++)
        if (slots[i].object == object) return i;
    return -1;
}

static void unwatch(int gone) {
    for (int i = 0; i < OBJECTS; i++)
        for (int w = 0; objects[i].kind == SET && w < objects[i].watching;)
            if (objects[i].watches[w].object == gone)
                objects[i].watches[w] = objects[i].watches[--objects[i].watching];
            else
                w++;
}

static void drop_reference(int object) {
    struct object *o = &objects[object];
    if (--o->references > 0) return;
    unwatch(object);
    if (o->carried >= 0) {
        objects[o->carried].in_flight = false;
        drop_reference(o->carried);
    }
    if (o->other >= 0) objects[o->other].other = -1;
    o->kind = NONE;
}

static void close_slot(int at) {
    int object = slots[at].object;
    MUST(close(slots[at].fd));
    slots[at].object = -1;
    drop_reference(object);
}

static bool is_any(const struct object *o) { return o->kind != NONE; }
static bool is_plain(const struct object *o) { return o->kind == PLAIN; }
static bool is_named(const struct object *o) { return o->kind == PLAIN && !o->unlinked; }
static bool is_counter(const struct object *o) { return o->kind == COUNTER; }
static bool is_timer(const struct object *o) { return o->kind == TIMER; }
static bool is_set(const struct object *o) { return o->kind == SET; }
static bool is_stream(const struct object *o) { return o->kind == LOCAL || o->kind == TCP; }
static bool is_local(const struct object *o) { return o->kind == LOCAL; }
static bool is_tcp(const struct object *o) { return o->kind == TCP; }
static bool is_listener(const struct object *o) { return o->kind == LISTENER; }
static bool is_writer(const struct object *o) { return o->kind == WRITER || is_stream(o); }
static bool is_reader(const struct object *o) { return o->kind == READER || is_stream(o); }
static bool is_watchable(const struct object *o) { return (is_reader(o) || is_writer(o) || is_counter(o)) && !o->in_flight; }
static bool is_sendable(const struct object *o) {
    return (is_plain(o) || is_counter(o)) && !o->in_flight && !o->watched && !o->locked && !o->owned;
}

/* ------------------------------------------------------------------------------------------------------------- operations */

static void open_something(void) {
    char path[PATH_MAX], name[64];
    int how = below(8), fd;
    bool cloexec = below(2);
    int close_on_exec = cloexec ? O_CLOEXEC : 0;
    if (free_object() < 0 || !free_slots(1)) return;
    if (how == 0) {
        fd = MUST(open(path_in(path, ""), O_RDONLY | O_DIRECTORY | close_on_exec));
        add_slot(fd, new_object(DIRECTORY, fd), cloexec);
    } else if (how == 1) {
        fd = MUST(open("/dev/null", O_RDWR | close_on_exec));
        add_slot(fd, new_object(NULL_DEVICE, fd), cloexec);
    } else {
        snprintf(name, sizeof name, "file.%d", files_made++);
        int mode = below(3) == 0 ? O_APPEND : 0;
        fd = MUST(open(path_in(path, name), O_CREAT | O_RDWR | mode | close_on_exec, 0644));
        MUST(ftruncate(fd, 1 + below(5000)));
        int object = new_object(PLAIN, fd);
        strcpy(objects[object].path, name);
        add_slot(fd, object, cloexec);
        if (how == 2 && free_object() >= 0 && free_slots(1)) {
            fd = MUST(open(path, O_PATH | close_on_exec));
            /* It keeps its file in place: that one is never renamed. */
            objects[object].unlinked = true;
            add_slot(fd, new_object(NAME_ONLY, fd), cloexec);
        }
    }
}

/* Both ends go, so that none is left whose connection has ended. */
static void close_pair(int object) {
    for (int side = 0; side < 2; side++) {
        struct object *o = &objects[object];
        int other = o->other;
        for (int at; (at = slot_with(object)) >= 0;) close_slot(at);
        if (other < 0) return;
        object = other;
    }
}

static void drain(int object);

static void close_something(void) {
    int at = slot_of(is_any);
    if (at < 0) return;
    int object = slots[at].object;
    struct object *o = &objects[object];
    if (is_stream(o)) {
        /* Not while a child has it: the root could not close it for good. */
        if (o->other < 0 || below(3)) return;
        for (int i = 0; i < CHILDREN; i++)
            if (children[i].pid && (children[i].held[object] || children[i].held[o->other])) return;
        if (objects[o->other].in_flight || o->in_flight) return;
        drain(object);
        drain(o->other);
        close_pair(objects[o->other].shut ? o->other : object);
        return;
    }
    /* A watched file that nobody has open any more would be refused; only its last reference takes the watch along. */
    close_slot(at);
}

static void duplicate(void) {
    int at = slot_of(is_any);
    if (at < 0 || !free_slots(1)) return;
    int how = below(4), fd = -1, wanted = 200 + below(800);
    bool cloexec = false;
    for (int i = 0; i < SLOTS; i++)
        if (slots[i].object >= 0 && slots[i].fd == wanted) return;
    if (how == 0) fd = MUST(dup(slots[at].fd));
    if (how == 1) fd = MUST(dup2(slots[at].fd, wanted));
    if (how == 2) fd = MUST(dup3(slots[at].fd, wanted, O_CLOEXEC)), cloexec = true;
    if (how == 3) fd = MUST(fcntl(slots[at].fd, F_DUPFD_CLOEXEC, 3)), cloexec = true;
    add_slot(fd, slots[at].object, cloexec);
}

static void change_flags(void) {
    int at = slot_of(is_any);
    if (at < 0) return;
    struct object *o = &objects[slots[at].object];
    if (below(2)) {
        slots[at].cloexec = !slots[at].cloexec;
        MUST(fcntl(slots[at].fd, F_SETFD, slots[at].cloexec ? FD_CLOEXEC : 0));
    } else if (o->kind != NAME_ONLY) {
        o->flags ^= O_NONBLOCK;
        MUST(fcntl(slots[at].fd, F_SETFL, o->flags));
    }
}

static void seek_or_write(void) {
    int at = slot_of(is_plain);
    if (at < 0) return;
    struct object *o = &objects[slots[at].object];
    if (below(2)) {
        o->position = MUST(lseek(slots[at].fd, below(9000), SEEK_SET));
    } else {
        char bytes[100] = {0};
        CHECK(write(slots[at].fd, bytes, sizeof bytes) == sizeof bytes, "write: %s", strerror(errno));
        o->position = MUST(lseek(slots[at].fd, 0, SEEK_CUR));
    }
}

static void rename_or_remove(void) {
    char from[PATH_MAX], to[PATH_MAX], name[64];
    int at = slot_of(is_named), how = below(6);
    if (how == 0) {
        snprintf(name, sizeof name, "folder.%d", folder);
        guest_path(from, name);
        snprintf(name, sizeof name, "folder.%d", folder + 1);
        MUST(rename(from, guest_path(to, name)));
        folder++;
        return;
    }
    if (at < 0) return;
    struct object *o = &objects[slots[at].object];
    path_in(from, o->path);
    snprintf(name, sizeof name, "file.%d", files_made++);
    path_in(to, name);
    if (how == 1) {
        MUST(unlink(from));
        o->unlinked = true;
    } else if (how == 2) {
        /* It has another name then, which nobody was told. */
        MUST(link(from, to));
        MUST(unlink(from));
        strcpy(o->path, name);
    } else if (how == 3) {
        MUST(chmod(from, below(2) ? 0600 : 0640));
    } else {
        MUST(rename(from, to));
        strcpy(o->path, name);
    }
}

static void make_pipe(void) {
    int ends[2];
    if (!free_slots(2)) return;
    MUST(pipe2(ends, below(2) ? O_NONBLOCK : 0));
    int reader = free_object(), writer;
    if (reader < 0 || (objects[reader].kind = READER, writer = free_object(), objects[reader].kind = NONE, writer < 0)) {
        MUST(close(ends[0]));
        MUST(close(ends[1]));
        return;
    }
    reader = new_object(READER, ends[0]);
    add_slot(ends[0], reader, false);
    writer = new_object(WRITER, ends[1]);
    add_slot(ends[1], writer, false);
    objects[reader].other = writer;
    objects[writer].other = reader;
}

static bool room_for_two(void) {
    int free = 0;
    for (int i = 0; i < OBJECTS; i++) free += objects[i].kind == NONE;
    return free >= 2 && free_slots(2);
}

static void add_pair(enum kind kind, int a, int b, bool cloexec) {
    int one = new_object(kind, a);
    add_slot(a, one, cloexec);
    int two = new_object(kind, b);
    add_slot(b, two, cloexec);
    objects[one].other = two;
    objects[two].other = one;
    if (kind == TCP) {
        socklen_t length = sizeof(int);
        for (int i = 0; i < 2; i++) {
            struct object *o = &objects[i ? two : one];
            int fd = i ? b : a;
            MUST(getsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &o->idle, &length));
        }
    }
}

static void make_connection(void) {
    if (!room_for_two()) return;
    bool cloexec = below(2);
    int at = slot_of(is_listener);
    if (below(2) || at < 0) {
        int ends[2], kinds[] = {SOCK_STREAM, SOCK_STREAM, SOCK_SEQPACKET};
        MUST(socketpair(AF_UNIX, kinds[below(3)] | (cloexec ? SOCK_CLOEXEC : 0), 0, ends));
        add_pair(LOCAL, ends[0], ends[1], cloexec);
        return;
    }
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct object *o = &objects[slots[at].object];
    bool is_six = o->count;
    six.sin6_port = four.sin_port = htons((uint16_t)o->port);
    bool nonblocking = o->flags & O_NONBLOCK;
    if (nonblocking) return;
    int a = MUST(socket(is_six ? AF_INET6 : AF_INET, SOCK_STREAM | (cloexec ? SOCK_CLOEXEC : 0), 0));
    MUST(connect(a, is_six ? (struct sockaddr *)&six : (struct sockaddr *)&four, is_six ? sizeof six : sizeof four));
    int b = MUST(accept4(slots[at].fd, NULL, NULL, cloexec ? SOCK_CLOEXEC : 0));
    add_pair(TCP, a, b, cloexec);
}

static void make_listener(void) {
    if (free_object() < 0 || !free_slots(1)) return;
    int listeners = 0;
    for (int i = 0; i < OBJECTS; i++) listeners += objects[i].kind == LISTENER;
    if (listeners > 3) return;
    bool is_six = below(2);
    struct sockaddr_in6 at = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    if (!is_six) *(struct sockaddr_in *)&at = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = is_six ? sizeof at : sizeof(struct sockaddr_in);
    int fd = MUST(socket(is_six ? AF_INET6 : AF_INET, SOCK_STREAM, 0));
    MUST(bind(fd, (struct sockaddr *)&at, length));
    MUST(listen(fd, 8));
    MUST(getsockname(fd, (struct sockaddr *)&at, &length));
    int object = new_object(LISTENER, fd);
    objects[object].port = ntohs(at.sin6_port); /* at the same place in both */
    objects[object].count = is_six;
    add_slot(fd, object, false);
}

static void set_option(void) {
    int at = slot_of(is_tcp);
    if (at < 0) return;
    struct object *o = &objects[slots[at].object];
    if (o->other < 0) return;
    int how = below(3);
    int *value = how == 0 ? &o->keep_alive : how == 1 ? &o->no_delay : &o->idle;
    *value = how == 2 ? 1000 + below(1000) : !*value;
    MUST(setsockopt(slots[at].fd, how ? IPPROTO_TCP : SOL_SOCKET, how == 0 ? SO_KEEPALIVE : how == 1 ? TCP_NODELAY : TCP_KEEPIDLE,
                    value, sizeof *value));
}

/* Sends a few bytes to the other end, or a descriptor with one. */
static void send_something(void) {
    int at = slot_of(is_writer);
    if (at < 0) return;
    struct object *o = &objects[slots[at].object];
    if (o->other < 0 || o->shut) return;
    struct object *to = &objects[o->other];
    if (to->carried >= 0 || to->sent - to->got > 2000) return;
    unsigned char bytes[100];
    int n = 1 + below(100), what = -1;
    if (o->kind == LOCAL && below(4) == 0 && (what = slot_of(is_sendable)) >= 0) n = 1;
    for (int i = 0; i < n; i++) bytes[i] = byte_of(o->other, to->sent + (uint64_t)i);
    if (what >= 0) {
        union {
            struct cmsghdr header;
            char room[CMSG_SPACE(sizeof(int))];
        } control = {.header = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
        memcpy(CMSG_DATA(&control.header), &slots[what].fd, sizeof(int));
        struct iovec piece = {bytes, 1};
        struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control.room};
        CHECK(sendmsg(slots[at].fd, &message, 0) == 1, "sendmsg: %s", strerror(errno));
        to->carried = slots[what].object;
        objects[to->carried].references++;
        objects[to->carried].in_flight = true;
    } else {
        CHECK(write(slots[at].fd, bytes, (size_t)n) == n, "write of %d bytes: %s", n, strerror(errno));
    }
    to->sent += (uint64_t)n;
}

static void receive(int object, size_t most) {
    struct object *o = &objects[object];
    int at = slot_with(object);
    CHECK(at >= 0, "nobody has the end that is to be read");
    unsigned char bytes[4096];
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec piece = {bytes, most < sizeof bytes ? most : sizeof bytes};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control.room};
    ssize_t n = o->kind == READER ? read(slots[at].fd, bytes, piece.iov_len) : recvmsg(slots[at].fd, &message, 0);
    CHECK(n > 0, "read: %s", n ? strerror(errno) : "the end");
    for (ssize_t i = 0; i < n; i++)
        CHECK(bytes[i] == byte_of(object, o->got + (uint64_t)i), "byte %lu is another", (unsigned long)o->got + (unsigned long)i);
    o->got += (uint64_t)n;
    if (o->kind == READER || message.msg_controllen < sizeof control.header) return;
    CHECK(o->carried >= 0, "a descriptor was received that nobody sent");
    int fd;
    memcpy(&fd, CMSG_DATA(&control.header), sizeof fd);
    int carried = o->carried;
    o->carried = -1;
    objects[carried].in_flight = false;
    if (free_slots(1))
        add_slot(fd, carried, false);
    else
        MUST(close(fd));
    drop_reference(carried);
}

static void drain(int object) {
    /* A packet that is not read whole is lost, so there is always room for one. */
    while (objects[object].sent > objects[object].got) receive(object, 4096);
}

static void receive_something(void) {
    int at = slot_of(is_reader);
    if (at < 0) return;
    struct object *o = &objects[slots[at].object];
    if (o->sent > o->got) receive(slots[at].object, o->kind == LOCAL ? 4096 : 1 + (size_t)below(300));
}

static void shut_down(void) {
    int at = slot_of(is_stream);
    if (at < 0 || below(8)) return;
    struct object *o = &objects[slots[at].object];
    if (o->other < 0 || o->shut || objects[o->other].shut) return;
    MUST(shutdown(slots[at].fd, SHUT_WR));
    o->shut = true;
}

static void count_or_time(void) {
    int what = below(5), at;
    if (what == 0 && free_object() >= 0 && free_slots(1)) {
        int fd = MUST(eventfd(0, EFD_NONBLOCK));
        add_slot(fd, new_object(COUNTER, fd), false);
    } else if (what == 1 && free_object() >= 0 && free_slots(1)) {
        int fd = MUST(timerfd_create(CLOCK_MONOTONIC, 0));
        add_slot(fd, new_object(TIMER, fd), false);
    } else if (what == 2 && free_object() >= 0 && free_slots(1)) {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGUSR2);
        int fd = MUST(signalfd(-1, &set, 0));
        add_slot(fd, new_object(SIGNALS, fd), false);
    } else if (what == 3 && (at = slot_of(is_counter)) >= 0) {
        uint64_t more = 1 + (uint64_t)below(5);
        CHECK(write(slots[at].fd, &more, sizeof more) == sizeof more, "eventfd: %s", strerror(errno));
        objects[slots[at].object].count += more;
    } else if (what == 4 && (at = slot_of(is_timer)) >= 0) {
        struct itimerspec far = {.it_value.tv_sec = below(2) ? 100000 : 0};
        MUST(timerfd_settime(slots[at].fd, 0, &far, NULL));
    }
}

static void watch_something(void) {
    int at = slot_of(is_set);
    if (at < 0 || below(10) == 0) {
        if (free_object() < 0 || !free_slots(1)) return;
        int fd = MUST(epoll_create1(0));
        add_slot(fd, new_object(SET, fd), false);
        return;
    }
    struct object *set = &objects[slots[at].object];
    uint32_t events = (below(2) ? EPOLLIN : EPOLLOUT) | (below(3) ? 0 : EPOLLET);
    struct epoll_event event = {.events = events, .data.u64 = random_next(&seed)};
    if (set->watching && below(2)) {
        int w = below(set->watching);
        struct watch *watch = &set->watches[w];
        /* Only by a number that still leads to it. */
        bool leads = false;
        for (int i = 0; i < SLOTS; i++) leads |= slots[i].object == watch->object && slots[i].fd == watch->fd;
        if (!leads) return;
        if (below(2)) {
            MUST(epoll_ctl(slots[at].fd, EPOLL_CTL_MOD, watch->fd, &event));
            watch->events = events;
        } else {
            MUST(epoll_ctl(slots[at].fd, EPOLL_CTL_DEL, watch->fd, NULL));
            set->watches[w] = set->watches[--set->watching];
        }
        return;
    }
    int what = slot_of(is_watchable);
    if (what < 0 || set->watching == WATCHES) return;
    for (int w = 0; w < set->watching; w++)
        if (set->watches[w].fd == slots[what].fd && set->watches[w].object == slots[what].object) return;
    MUST(epoll_ctl(slots[at].fd, EPOLL_CTL_ADD, slots[what].fd, &event));
    objects[slots[what].object].watched = true;
    set->watches[set->watching++] = (struct watch){slots[what].fd, slots[what].object, events};
}

static void lock_or_own(void) {
    int at = slot_of(below(2) ? is_plain : is_local);
    if (at < 0) return;
    struct object *o = &objects[slots[at].object];
    if (o->in_flight) return;
    if (o->kind == PLAIN && below(2)) {
        MUST(flock(slots[at].fd, o->locked ? LOCK_UN : LOCK_EX | LOCK_NB));
        o->locked = !o->locked;
    } else if (o->kind == LOCAL) {
        o->owned = !o->owned;
        MUST(fcntl(slots[at].fd, F_SETOWN, o->owned ? getpid() : 0));
    }
}

static void end_child(struct child *child) {
    MUST(kill(child->pid, SIGKILL));
    MUST(waitpid(child->pid, NULL, 0));
    child->pid = 0;
    for (int i = 0; i < OBJECTS; i++)
        while (child->held[i]) {
            child->held[i]--;
            drop_reference(i);
        }
}

static void fork_or_end(void) {
    struct child *child = &children[below(CHILDREN)];
    if (below(12)) return;
    if (child->pid) {
        end_child(child);
        return;
    }
    memset(child, 0, sizeof *child);
    int how = below(3);
    child->shares = how == 0;
    child->pid = (pid_t)MUST(syscall(SYS_clone, (how == 0 ? CLONE_FILES : 0) | SIGCHLD, NULL, NULL, NULL, NULL));
    if (child->pid == 0) {
        if (how == 2) execl("/bin/sleep", "sleep", "1000000", NULL);
        for (;;) pause();
    }
    char path[64], exe[PATH_MAX] = "";
    snprintf(path, sizeof path, "/proc/%d/exe", child->pid);
    while (how == 2 && !strstr(exe, "sleep") && !strstr(exe, "busybox") && !strstr(exe, "coreutils")) {
        ssize_t n = MUST(readlink(path, exe, sizeof exe - 1));
        exe[n] = 0;
    }
    for (int i = 0; i < SLOTS && how; i++)
        if (slots[i].object >= 0 && !(how == 2 && slots[i].cloexec)) {
            child->held[slots[i].object]++;
            objects[slots[i].object].references++;
        }
}

/* ------------------------------------------------------------------------------------------------------------------ checks */

static int by_number(const void *a, const void *b) {
    const struct watch *x = a, *y = b;
    return x->fd != y->fd ? x->fd - y->fd : (int)x->events - (int)y->events;
}

static void check_set(int at, struct object *set) {
    char path[64], text[8192];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", slots[at].fd);
    guest_read_file(path, text, sizeof text);
    struct watch found[WATCHES + 1];
    int n = 0;
    for (char *line = strtok(text, "\n"); line && n <= WATCHES; line = strtok(NULL, "\n"))
        if (sscanf(line, "tfd: %d events: %x", &found[n].fd, &found[n].events) == 2) n++;
    CHECK(n == set->watching, "a set watches %d files and not %d", n, set->watching);
    qsort(found, (size_t)n, sizeof *found, by_number);
    qsort(set->watches, (size_t)n, sizeof *found, by_number);
    for (int w = 0; w < n; w++)
        CHECK(found[w].fd == set->watches[w].fd && (found[w].events & ~(uint32_t)(EPOLLERR | EPOLLHUP)) == set->watches[w].events,
              "a set watches %d for %x and not %d for %x", found[w].fd, found[w].events, set->watches[w].fd, set->watches[w].events);
}

static void check_object(int object) {
    struct object *o = &objects[object];
    int at = slot_with(object);
    if (at < 0) return;
    int fd = slots[at].fd, value;
    socklen_t length = sizeof value;
    CHECK((fcntl(fd, F_GETFL) & (O_ACCMODE | O_NONBLOCK | O_APPEND)) == (o->flags & (O_ACCMODE | O_NONBLOCK | O_APPEND)),
          "descriptor %d has flags %x and not %x", fd, fcntl(fd, F_GETFL), o->flags);
    switch (o->kind) {
    case PLAIN:
        CHECK(lseek(fd, 0, SEEK_CUR) == o->position, "descriptor %d is at %ld", fd, (long)lseek(fd, 0, SEEK_CUR));
        break;
    case COUNTER: {
        uint64_t count = 0;
        if (o->count && !(o->flags & O_NONBLOCK)) fcntl(fd, F_SETFL, O_NONBLOCK);
        if (o->count) CHECK(read(fd, &count, sizeof count) == sizeof count && count == o->count, "a counter is at %lu", count);
        break;
    }
    case SET: check_set(at, o); break;
    case TCP:
        MUST(getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &value, &length));
        CHECK(value == o->keep_alive, "SO_KEEPALIVE of %d is %d", fd, value);
        MUST(getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &value, &length));
        CHECK(value == o->no_delay, "TCP_NODELAY of %d is %d", fd, value);
        MUST(getsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &value, &length));
        CHECK(value == o->idle, "TCP_KEEPIDLE of %d is %d", fd, value);
        /* fall through */
    case LOCAL:
    case READER: drain(object); break;
    default: break;
    }
    CHECK(o->kind != LOCAL || (fcntl(fd, F_GETOWN) != 0) == o->owned, "descriptor %d has another owner", fd);
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    seed = (uint64_t)guest_option(argc, argv, "seed", 4);
    signal(SIGPIPE, SIG_IGN);
    char path[PATH_MAX];
    MUST(mkdir(guest_path(path, "folder.0"), 0755));
    for (int i = 0; i < SLOTS; i++) slots[i].object = -1;
    make_listener();
    guest_ready();
    static void (*const operations[])(void) = {
        open_something, open_something, close_something, close_something, close_something, duplicate, change_flags, seek_or_write,
        rename_or_remove, make_pipe, make_connection, make_connection, make_listener, set_option, send_something, send_something,
        receive_something, receive_something, receive_something, shut_down, count_or_time, watch_something, watch_something, lock_or_own,
        fork_or_end};
    while (!guest_finishing()) {
        if (guest_has("go.1"))
            guest_sleep_ms(2);
        else
            operations[below(ARRAY_LEN(operations))]();
        guest_step();
        guest_sleep_ms(1);
    }
    for (int i = 0; i < SLOTS; i++)
        if (slots[i].object >= 0)
            CHECK(fcntl(slots[i].fd, F_GETFD) == (slots[i].cloexec ? FD_CLOEXEC : 0), "descriptor %d is not closed by exec, or is", slots[i].fd);
    for (int i = 0; i < OBJECTS; i++)
        if (objects[i].kind != NONE) check_object(i);
    for (int i = 0; i < CHILDREN; i++)
        if (children[i].pid) end_child(&children[i]);
    guest_ok();
}
