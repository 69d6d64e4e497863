/*
 * Multicast groups on the loopback interface, and on a second one (`d0`, of the test's), of IPv4 and IPv6, with sources that are let
 * in or kept out; sockets that are bound to a device, and that send through one.
 */
#include "net.h"

struct member {
    const char *what, *group, *interface;
    uint32_t mode;
    const char *sources[2];
};

static const struct member members[] = {
    {"a group", "239.1.2.3", "lo", MCAST_EXCLUDE, {0}},
    {"a group on another interface", "239.1.2.3", "d0", MCAST_EXCLUDE, {0}},
    {"a group without some", "239.1.2.4", "lo", MCAST_EXCLUDE, {"127.0.0.7", "127.0.0.8"}},
    {"a group with only some", "239.1.2.5", "lo", MCAST_INCLUDE, {"127.0.0.1", "127.0.0.9"}},
    {"a group of IPv6", "ff15::77", "lo", MCAST_EXCLUDE, {0}},
    {"a group of IPv6 with only one", "ff15::78", "d0", MCAST_INCLUDE, {"2001:db8::1"}},
};

static int family_of(const char *ip) { return strchr(ip, ':') ? AF_INET6 : AF_INET; }
static int level_of(const char *ip) { return strchr(ip, ':') ? IPPROTO_IPV6 : IPPROTO_IP; }

static void join(int fd, const struct member *member) {
    struct group_req request = {.gr_interface = if_nametoindex(member->interface), .gr_group = at(family_of(member->group), member->group, 0)};
    int level = level_of(member->group);
    if (member->mode == MCAST_EXCLUDE) MUST(setsockopt(fd, level, MCAST_JOIN_GROUP, &request, sizeof request));
    for (int i = 0; i < 2 && member->sources[i]; i++) {
        struct group_source_req one = {.gsr_interface = request.gr_interface, .gsr_group = request.gr_group,
                                       .gsr_source = at(family_of(member->group), member->sources[i], 0)};
        MUST(setsockopt(fd, level, member->mode == MCAST_EXCLUDE ? MCAST_BLOCK_SOURCE : MCAST_JOIN_SOURCE_GROUP, &one, sizeof one));
    }
}

static void check(int fd, const struct member *member) {
    char room[GROUP_FILTER_SIZE(8)] = {0};
    struct group_filter *filter = (struct group_filter *)room;
    filter->gf_interface = if_nametoindex(member->interface);
    filter->gf_group = at(family_of(member->group), member->group, 0);
    filter->gf_numsrc = 8;
    socklen_t length = sizeof room;
    CHECK(getsockopt(fd, level_of(member->group), MCAST_MSFILTER, filter, &length) == 0, "%s: no member (%s)", member->what, strerror(errno));
    CHECK(filter->gf_fmode == member->mode, "%s: another mode", member->what);
    unsigned count = 0;
    for (int i = 0; i < 2 && member->sources[i]; i++) {
        struct sockaddr_storage wanted = at(family_of(member->group), member->sources[i], 0);
        bool found = false;
        for (unsigned j = 0; j < filter->gf_numsrc; j++) {
            if (wanted.ss_family == AF_INET)
                found |= memcmp(&((struct sockaddr_in *)&wanted)->sin_addr, &((struct sockaddr_in *)&filter->gf_slist[j])->sin_addr, 4) == 0;
            else
                found |= memcmp(&((struct sockaddr_in6 *)&wanted)->sin6_addr, &((struct sockaddr_in6 *)&filter->gf_slist[j])->sin6_addr, 16) == 0;
        }
        CHECK(found, "%s: the source %s is gone", member->what, member->sources[i]);
        count++;
    }
    CHECK(filter->gf_numsrc == count, "%s: %u sources", member->what, filter->gf_numsrc);
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    int fds[ARRAY_LEN(members)], both = bound(AF_INET6, SOCK_DGRAM, 0, "::", 0);
    for (size_t i = 0; i < ARRAY_LEN(members); i++) {
        fds[i] = bound(family_of(members[i].group), SOCK_DGRAM, 0, family_of(members[i].group) == AF_INET ? "0.0.0.0" : "::", 0);
        set(fds[i], IPPROTO_IP, IP_MULTICAST_ALL, 0);
        join(fds[i], &members[i]);
        join(both, &members[i]);
    }
    int sender = bound(AF_INET, SOCK_DGRAM, 0, "127.0.0.1", 0), device = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
    int v4_index = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    struct in_addr from = {htonl(INADDR_LOOPBACK)}, now;
    MUST(setsockopt(sender, IPPROTO_IP, IP_MULTICAST_IF, &from, sizeof from));
    MUST(setsockopt(device, SOL_SOCKET, SO_BINDTODEVICE, "d0", 3));
    set(device, IPPROTO_IPV6, IPV6_MULTICAST_IF, (int)if_nametoindex("d0"));
    int swapped = (int)htonl(if_nametoindex("d0"));
    set(v4_index, IPPROTO_IP, IP_UNICAST_IF, swapped);
    /* By number alone: the option does not show it, but packets do. */
    struct ip_mreqn request = {.imr_ifindex = (int)if_nametoindex("lo")};
    MUST(setsockopt(v4_index, IPPROTO_IP, IP_MULTICAST_IF, &request, sizeof request));
    guest_ready();
    for (unsigned n = 0; !guest_finishing(); n++) {
        unsigned got;
        for (int i = 0; i < 4; i++) {
            send_to(sender, &n, sizeof n, at(AF_INET, members[i].group, port_of(name_of(fds[i]))));
            bool here = strcmp(members[i].interface, "lo") == 0;
            CHECK(becomes_readable(fds[i]) == here || !here, "%s: nothing arrives", members[i].what);
            if (here) CHECK(recv(fds[i], &got, sizeof got, 0) == sizeof got && got == n, "%s: %u for %u", members[i].what, got, n);
            CHECK(!is_readable(fds[i]), "%s: more arrives", members[i].what);
            if (i == 0) i++; /* that one only listens elsewhere */
        }
        send_to(v4_index, &n, sizeof n, at(AF_INET, members[0].group, port_of(name_of(fds[0]))));
        CHECK(becomes_readable(fds[0]), "the interface for multicasts is another");
        CHECK(recv(fds[0], &got, sizeof got, 0) == sizeof got && got == n, "%u for %u by number", got, n);
        guest_step();
        guest_sleep_ms(2);
    }
    for (size_t i = 0; i < ARRAY_LEN(members); i++) {
        check(fds[i], &members[i]);
        check(both, &members[i]);
    }
    socklen_t length = sizeof now;
    MUST(getsockopt(sender, IPPROTO_IP, IP_MULTICAST_IF, &now, &length));
    CHECK(now.s_addr == from.s_addr, "IP_MULTICAST_IF");
    char name[IFNAMSIZ] = "";
    length = sizeof name;
    MUST(getsockopt(device, SOL_SOCKET, SO_BINDTODEVICE, name, &length));
    CHECK(strcmp(name, "d0") == 0, "SO_BINDTODEVICE");
    CHECK(get(device, IPPROTO_IPV6, IPV6_MULTICAST_IF) == (int)if_nametoindex("d0"), "IPV6_MULTICAST_IF");
    CHECK(get(v4_index, IPPROTO_IP, IP_UNICAST_IF) == (int)htonl(if_nametoindex("d0")), "IP_UNICAST_IF");
    guest_ok();
}
