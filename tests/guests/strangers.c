/*
 * Many established connections on which nothing happens.
 *
 *   strangers DIR --serve 1                            accepts, says where by `say.port`, and keeps what it has accepted
 *   strangers DIR --connect PORT --connections N       N connections to that port of 127.0.0.1
 *
 * A step is a look at the clock, a hundred times a second. In the end no connection may have got anything, or an error.
 */
#include "guest.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>

enum { MOST = 4000 };

static struct pollfd connections[MOST];
static nfds_t count;

static void keep(int fd) {
    CHECK(count < MOST, "too many connections");
    connections[count++] = (struct pollfd){.fd = fd, .events = POLLIN};
}

/* On the server's side the clients may have ended: the test lets them finish first. */
static void check_all(bool may_have_ended) {
    MUST(poll(connections, count, 0));
    for (nfds_t i = 0; i < count; i++) {
        int happened = connections[i].revents & ~(may_have_ended ? POLLIN | POLLRDHUP : 0);
        CHECK(happened == 0, "connection %lu of %lu: poll sees %x", i, count, happened);
    }
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    struct rlimit limit;
    MUST(getrlimit(RLIMIT_NOFILE, &limit));
    limit.rlim_cur = limit.rlim_max;
    MUST(setrlimit(RLIMIT_NOFILE, &limit));
    long port = guest_option(argc, argv, "connect", 0), wanted = guest_option(argc, argv, "connections", 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof at;
    int listener = -1;
    if (guest_option(argc, argv, "serve", 0)) {
        char text[8];
        listener = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
        MUST(bind(listener, (struct sockaddr *)&at, sizeof at));
        MUST(listen(listener, MOST));
        MUST(getsockname(listener, (struct sockaddr *)&at, &length));
        snprintf(text, sizeof text, "%u", ntohs(at.sin_port));
        guest_link("say.port", text);
    }
    for (long i = 0; i < wanted; i++) {
        int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
        MUST(connect(fd, (struct sockaddr *)&at, sizeof at));
        keep(fd);
    }
    guest_ready();
    while (!guest_finishing()) {
        for (int fd; listener >= 0 && (fd = accept(listener, NULL, NULL)) >= 0;) keep(fd);
        guest_step();
        guest_sleep_ms(10);
    }
    check_all(listener >= 0);
    guest_ok();
}
