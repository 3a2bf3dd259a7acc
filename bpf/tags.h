/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The values of skb->tc_index, which stays with a packet on its way through the kernel. One program sets it, a later
 * one reads it:
 *
 *   0                     no program of ours has set it
 *   1 to TAG_MARKED - 1   from_client, to_origin: the number of the packet among those in flight (fast_entries.h)
 *   TAG_MARKED, …         from_client, to_origin: below
 *   any port              from_origin, to_client: the port that the packet came to, in network order
 *
 * An answer to port TAG_REDIRECTED, which is the same value in either byte order, gets no tag.
 */
enum {
	TAG_REDIRECTED = 0xffff,   /* the fast path has rewritten and redirected the packet: it is done */
	TAG_FIRST_PACKET = 0xfffe, /* of a flow without an answer: to_origin claims its port */
	TAG_MARKED = 0xfffd,       /* any other packet that from_client has marked, and no entry is created from */
};
