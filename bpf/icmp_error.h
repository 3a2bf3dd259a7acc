/* SPDX-License-Identifier: GPL-2.0-only */
/* The lookup of the flow that an ICMP error is about, so that the error leaves with that flow's address (RFC 5508,
 * 4.2). */

/* Null if the packet is not such an error, or its flow is unknown. The packet inside the error came from the origin. */
static __always_inline struct flow *flow_of_error(struct __sk_buff *skb, const struct packet *p)
{
	struct flow_key key = {};
	u32 inner = p->transport + 8;
	u32 ports;

	if (p->family == IPV4) {
		struct iphdr ip;

		if ((p->icmp_type != ICMP_DEST_UNREACH && p->icmp_type != ICMP_TIME_EXCEEDED &&
		     p->icmp_type != ICMP_PARAMETERPROB) ||
		    load(skb, inner, &ip, sizeof(ip)) < 0)
			return 0;
		key.protocol = ip.protocol;
		map_ipv4(key.client, ip.daddr);
		map_ipv4(key.origin, ip.saddr);
		inner += ip.ihl * 4;
	} else {
		struct ipv6hdr ip;
		int i;

		if (p->icmp_type >= ICMPV6_FIRST_QUERY || load(skb, inner, &ip, sizeof(ip)) < 0)
			return 0;
		key.protocol = ip.nexthdr;
		copy_address(key.client, ip.daddr.in6_u.u6_addr32);
		copy_address(key.origin, ip.saddr.in6_u.u6_addr32);
		inner += sizeof(ip);
		for (i = 0; i < EXTENSION_HEADERS && is_extension(key.protocol); i++) {
			u8 header[8];

			if (load(skb, inner, header, sizeof(header)) < 0)
				return 0;
			inner += extension_length(key.protocol, header);
			key.protocol = header[0];
		}
	}
	if (load(skb, inner, &ports, sizeof(ports)) < 0)
		return 0;
	key.origin_port = ports & 0xffff;
	key.client_port = ports >> 16;
	return flows.lookup(&key);
}
