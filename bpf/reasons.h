/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every outcome of a packet, defined once for C and for Python (enforcer/reasons.py reads
 * this file). REASON(number, NAME, verdict, description)
 *
 *   verdict  dedicated, shared   translated onto an egress address
 *            refused             answered with a TCP reset or ICMP "administratively prohibited"
 *            blocked             dropped silently
 *            untouched           not egress: left to the kernel as without the enforcer
 *
 * Numbers are never reused. Those from 70 on are counted by the nftables table, not by BPF;
 * UNLISTED and INBOUND by both.
 */
/* One line for each reason. */
/* clang-format off */
REASON(1, POLICY, dedicated, "a policy names this egress IP")
REASON(2, FALLBACK, dedicated, "the policy's primary egress IP is unavailable, its fallback is used")
REASON(3, NEAREST, dedicated, "no policy matches: the nearest dedicated egress IP")
REASON(4, ADOPTED, dedicated, "taken over from conntrack when the flow table was lost: keeps its address")
REASON(5, EXPECTED, dedicated, "opened by the origin, as a conntrack helper expects of a connection of this egress IP")
REASON(6, EXPECTED_SHARED, shared, "opened by the origin, as a conntrack helper expects of a connection of the shared address")
REASON(10, DEFAULT, shared, "a policy says egress: default")
REASON(11, FALLBACK_SHARED, shared, "the policy's primary egress IP is unavailable, its fallback is the shared address")
REASON(12, DNS, shared, "DNS is always shared")
REASON(13, ICMP, shared, "ICMP and ICMPv6 are always shared")
REASON(14, TUNNEL, shared, "the destination is a private network")
REASON(15, TCP_OFF, shared, "TCP is not proxied here")
REASON(16, UDP_OFF, shared, "UDP is not proxied here")
REASON(17, PROTOCOL, shared, "neither TCP, UDP nor ICMP: not proxied")
REASON(18, ICMP_ERROR, shared, "an ICMP error about a live flow: it leaves with that flow's address (RFC 5508)")
REASON(19, ADOPTED_SHARED, shared, "taken over from conntrack when the flow table was lost: keeps the shared address")
REASON(20, LIMIT, refused, "the origin has as many connections from this egress address as the limit allows")
REASON(21, UNAVAILABLE, refused, "the egress IP is unavailable, and no fallback is available")
REASON(22, FLOWS_FULL, refused, "the flow table is full (limits.flows)")
REASON(23, ORIGINS_FULL, refused, "the table of origins is full (limits.origins)")
REASON(24, CLIENT_FLOWS, refused, "the client has as many live flows as limits.flows_per_client allows")
REASON(25, CLIENT_UNANSWERED, refused, "the client has as many unanswered flows as limits.unanswered_per_client allows")
REASON(26, SHARED_UNAVAILABLE, refused, "the gateway does not have the shared address at present")
REASON(30, MALFORMED, blocked, "the packet's headers are inconsistent or cut short")
REASON(31, TINY_FRAGMENT, blocked, "a first fragment too short for its transport header (RFC 1858)")
REASON(32, OUT_OF_STATE, blocked, "a TCP segment of no live flow that cannot begin one")
REASON(33, LEAK, blocked, "came from inside and would have left with a source that is not planned")
REASON(34, NOT_READY, blocked, "the enforcer's tables are not filled yet")
REASON(35, SPOOFED, blocked, "its source does not lead back to the interface that it came by")
REASON(36, ENDING, blocked, "its flow was being deleted at that moment; the next packet opens another one")
REASON(37, UNLISTED, blocked, "would leave by an interface that is in none of the file's lists (interfaces.other)")
REASON(38, RENAMED, blocked, "by an interface that was listed under another name: it was renamed since")
REASON(39, TAKEN, blocked, "by an interface that has become a port since, of a bridge, bond or VRF, which takes its packets")
REASON(40, LOCAL, untouched, "to the gateway itself, or multicast or broadcast")
REASON(41, INSIDE, untouched, "leaves by an inside interface")
REASON(42, UNROUTED, untouched, "no route: the kernel answers, unless the route is a blackhole")
REASON(43, TTL, untouched, "TTL or hop limit used up: the kernel answers")
REASON(44, TOO_BIG, untouched, "larger than the path's MTU and not to be fragmented: the kernel answers")
REASON(45, LATER_FRAGMENT, untouched, "a later fragment: follows its first one through reassembly")
REASON(46, NOT_IP, untouched, "not IP (ARP, for one), or not addressed to this machine")
REASON(47, OTHER, untouched, "leaves by an interface of interfaces.other")
REASON(50, REPLY, untouched, "from an origin to a client, of a live flow")
REASON(51, NEIGHBOUR, untouched, "a neighbour solicitation for an on-link egress range, answered")
REASON(70, UNSOLICITED, blocked, "arrived for an egress address and belongs to no flow")
REASON(71, CONNTRACK_INVALID, blocked, "conntrack calls it INVALID, so it would not be translated")
REASON(72, UNMARKED, blocked, "from inside to outside without having been classified")
REASON(73, INBOUND, blocked, "a connection opened from outside towards an inside network")
REASON(74, UNTRANSLATABLE, blocked, "its mark names no egress address")
REASON(75, ASTRAY, refused, "of a live flow, and would now leave by an interface that is not outside")
REASON(76, NOT_FORWARDED, blocked, "from or to an interface that is in none of the file's lists, for which forwarding was off")
/* clang-format on */
