/* What the guests with sockets of networks share. */
#ifndef NET_H
#define NET_H

#include "guest.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

UNUSED static void set(int fd, int level, int name, int value) { MUST(setsockopt(fd, level, name, &value, sizeof value)); }
UNUSED static int get(int fd, int level, int name) {
    int value = -1;
    socklen_t length = sizeof value;
    MUST(getsockopt(fd, level, name, &value, &length));
    return value;
}

/* An address on the loopback interface; `ip` may be NULL for 127.0.0.1 or ::1. */
UNUSED static struct sockaddr_storage at(int family, const char *ip, int port) {
    struct sockaddr_storage name = {.ss_family = (sa_family_t)family};
    struct sockaddr_in *v4 = (struct sockaddr_in *)&name;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&name;
    if (!ip) ip = family == AF_INET ? "127.0.0.1" : "::1";
    if (family == AF_INET) {
        v4->sin_port = htons((uint16_t)port);
        CHECK(inet_pton(family, ip, &v4->sin_addr) == 1, "the address %s", ip);
    } else {
        v6->sin6_port = htons((uint16_t)port);
        CHECK(inet_pton(family, ip, &v6->sin6_addr) == 1, "the address %s", ip);
    }
    return name;
}

UNUSED static struct sockaddr_storage name_of(int fd) {
    struct sockaddr_storage name = {0};
    socklen_t length = sizeof name;
    MUST(getsockname(fd, (struct sockaddr *)&name, &length));
    return name;
}
UNUSED static int port_of(struct sockaddr_storage name) { return ntohs(((struct sockaddr_in *)&name)->sin_port); }

UNUSED static int bound(int family, int kind, int protocol, const char *ip, int port) {
    int fd = MUST(socket(family, kind, protocol));
    struct sockaddr_storage name = at(family, ip, port);
    MUST(bind(fd, (struct sockaddr *)&name, sizeof name));
    return fd;
}
UNUSED static void connect_to(int fd, struct sockaddr_storage name) { MUST(connect(fd, (struct sockaddr *)&name, sizeof name)); }
UNUSED static void send_to(int fd, const void *bytes, size_t length, struct sockaddr_storage name) {
    ssize_t sent = sendto(fd, bytes, length, MSG_NOSIGNAL, (struct sockaddr *)&name, sizeof name);
    CHECK(sent == (ssize_t)length, "sending %zu bytes: %zd (%s)", length, sent, strerror(errno));
}
UNUSED static bool is_readable(int fd) {
    struct pollfd one = {.fd = fd, .events = POLLIN};
    MUST(poll(&one, 1, 0));
    return one.revents & POLLIN;
}
UNUSED static bool becomes_readable(int fd) {
    struct pollfd one = {.fd = fd, .events = POLLIN};
    MUST(poll(&one, 1, 2000));
    return one.revents & POLLIN;
}

#endif
