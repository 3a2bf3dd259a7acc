/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The values of skb->tc_index, which stays with a packet on its way through the kernel. One program sets it, a later
 * program reads it:
 *
 *   0                     no program has set it
 *   1 to TAG_MARKED - 1   from_client, to_origin: the tag of a packet in the kernel (fast_entries.h, in_flight)
 *   TAG_MARKED, …         from_client, to_origin: the values below
 *   any port              from_origin, to_client: the port at which the packet arrived, in network order
 *
 * A reply to port TAG_REDIRECTED, which has the same value in either byte order, gets no tag.
 */
enum {
	TAG_REDIRECTED = 0xffff,   /* the fast path has redirected the packet: no program handles it again */
	TAG_FIRST_PACKET = 0xfffe, /* a packet of an unanswered flow: to_origin claims its port */
	TAG_MARKED = 0xfffd,       /* any other packet that from_client has marked and from which no entry is created */
};
