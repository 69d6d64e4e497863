/*
 * Connections with somebody outside of the job that do not survive a restore: the program sees on each of them what it would see
 * after a real outage, once, by whichever call it asks. What stays within the job is not touched.
 *
 *   lost DIR --connect PORT      somebody listens at that port of 127.0.0.1, and keeps still
 */
#include "guest.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/socket.h>

static struct sockaddr_in loopback(long port) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static int connect_to(long port) {
    struct sockaddr_in at = loopback(port);
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(connect(fd, (struct sockaddr *)&at, sizeof at));
    return fd;
}

static int error_of(int fd) {
    int error = -1;
    socklen_t length = sizeof error;
    MUST(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length));
    return error;
}

/* The error of a call that must fail. */
static int failure(ssize_t result) { return result < 0 ? errno : 0; }

#define RESET(what, error)                                                                                                     \
    do {                                                                                                                       \
        int reset_error = (error);                                                                                             \
        CHECK(reset_error == ECONNRESET, "%s: %s", what, reset_error ? strerror(reset_error) : "no error");                   \
    } while (0)

static void *receive(void *arg) {
    char byte;
    ssize_t length;
    /* A checkpoint may interrupt it as a stop by a debugger would, which it does not notice. */
    length = recv(*(int *)arg, &byte, 1, 0);
    return (void *)(long)(length < 0 ? errno : 0);
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    long port = guest_option(argc, argv, "connect", 0);
    int waits = connect_to(port), reads = connect_to(port), writes = connect_to(port), asked = connect_to(port);
    int half = connect_to(port), queued = connect_to(port);
    MUST(shutdown(half, SHUT_WR));
    for (int i = 0; i < 1000; i++) CHECK(send(queued, "unread", 6, MSG_NOSIGNAL) == 6, "sending");
    int epoll = MUST(epoll_create1(0));
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 4711};
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, asked, &event));
    pthread_t thread;
    MUST0(pthread_create(&thread, NULL, receive, &waits));
    /* Within the job. */
    struct sockaddr_in at = loopback(0);
    socklen_t length = sizeof at;
    int listener = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(bind(listener, (struct sockaddr *)&at, sizeof at));
    MUST(listen(listener, 5));
    MUST(getsockname(listener, (struct sockaddr *)&at, &length));
    int inner = connect_to(ntohs(at.sin_port)), outer = MUST(accept(listener, NULL, NULL));
    guest_ready();
    for (uint64_t n = 0, got; !guest_finishing(); n++) {
        CHECK(send(inner, &n, sizeof n, MSG_NOSIGNAL) == sizeof n, "a connection within the job: %s", strerror(errno));
        CHECK(recv(outer, &got, sizeof got, MSG_WAITALL) == sizeof got && got == n, "a connection within the job");
        guest_step();
        guest_sleep_ms(5);
    }
    void *seen;
    char byte;
    MUST0(pthread_join(thread, &seen));
    RESET("the thread that waited", (int)(long)seen);
    RESET("recv", failure(recv(reads, &byte, 1, 0)));
    CHECK(recv(reads, &byte, 1, 0) == 0, "recv after the reset was told: %s", strerror(errno));
    RESET("send", failure(send(writes, &byte, 1, MSG_NOSIGNAL)));
    CHECK(failure(send(writes, &byte, 1, MSG_NOSIGNAL)) == EPIPE, "send after the reset was told: %s", strerror(errno));
    CHECK(epoll_wait(epoll, &event, 1, 0) == 1 && event.data.u64 == 4711, "epoll does not see the reset");
    CHECK((event.events & (EPOLLERR | EPOLLHUP)) == (EPOLLERR | EPOLLHUP), "epoll sees %x", event.events);
    RESET("SO_ERROR", error_of(asked));
    CHECK(error_of(asked) == 0, "SO_ERROR tells the reset twice");
    RESET("recv after shutdown", failure(recv(half, &byte, 1, 0)));
    struct pollfd one = {.fd = queued, .events = POLLIN};
    CHECK(poll(&one, 1, 0) == 1 && one.revents & POLLERR, "poll sees %x", one.revents);
    RESET("recv with a queue that was never sent", failure(recv(queued, &byte, 1, 0)));
    int another = connect_to(ntohs(at.sin_port));
    MUST(accept(listener, NULL, NULL));
    MUST(close(another));
    guest_ok();
}
