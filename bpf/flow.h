/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A flow's life, told as conntrack tells it, so that our counts and conntrack's are the same:
 * nf_conntrack_proto_tcp.c's states and its judgement of resets, nf_conntrack_proto_udp.c's streams.
 */

enum {
	STREAM_AFTER = 2000000000,   /* ns after which an answered UDP flow is a stream */
};

static __always_inline bool before(u32 a, u32 b)
{
	return (s32)(a - b) < 0;
}

static __always_inline bool is_closed(u32 state)
{
	return state == TIME_WAIT || state == CLOSE;
}

/* A segment that may begin a connection: SYN, or (picked up midway) a plain ACK. */
static __always_inline bool begins(const struct packet *p)
{
	u32 flags = p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK);

	return p->tuple.protocol != IPPROTO_TCP || flags == TCP_SYN || flags == TCP_ACK;
}

/* A client opens a connection anew on the tuple of a closed one. */
static __always_inline bool reopens(const struct flow *flow, const struct packet *p)
{
	return is_closed(flow->state) &&
	       (p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK)) == TCP_SYN;
}

static __always_inline u32 next_state(u32 state, u32 flags, enum direction direction)
{
	if (flags & TCP_SYN) {
		if (flags & TCP_ACK)
			return state == SYN_SENT2 || (state == SYN_SENT && direction == REPLY) ? SYN_RECV : state;
		return state == SYN_SENT && direction == REPLY ? SYN_SENT2 : state;
	}
	if (flags & TCP_FIN) {
		if (state == SYN_RECV || state == ESTABLISHED)
			return FIN_WAIT;
		return state == FIN_WAIT || state == CLOSE_WAIT ? LAST_ACK : state;
	}
	if (flags & TCP_ACK) {
		if (state == SYN_RECV && direction == ORIGINAL)
			return ESTABLISHED;
		if (state == FIN_WAIT)
			return CLOSE_WAIT;
		return state == LAST_ACK ? TIME_WAIT : state;
	}
	return state;
}

/* Whether conntrack believes this reset: 1 yes, 0 keeps the state, -1 calls the packet INVALID. */
static __always_inline int judge_reset(const struct flow *flow, const struct packet *p,
				       enum direction direction)
{
	u32 peer_acked = flow->acked[!direction];

	if (!(flow->has_acked & (1 << !direction)))
		return 1;
	if (p->seq == 0 && flow->state != ESTABLISHED)
		return 1;
	if (before(p->seq, peer_acked))
		return -1;
	if (flow->state != ESTABLISHED || p->seq == peer_acked)
		return 1;
	return flow->last_ack == 1 + direction && p->seq == flow->last_end;
}

static __always_inline void track_tcp(struct flow *flow, const struct packet *p, enum direction direction)
{
	u32 flags = p->tcp_flags;
	u32 end = p->seq + p->payload + !!(flags & TCP_SYN) + !!(flags & TCP_FIN);

	if (flags & TCP_RST) {
		int verdict = judge_reset(flow, p, direction);

		if (verdict < 0)
			return;
		if (verdict)
			flow->state = CLOSE;
		flow->timeout = CLOSE;
		flow->last_ack = 0;
		return;
	}
	flow->state = next_state(flow->state, flags, direction);
	if (!flow->end[direction] || before(flow->end[direction], end)) {
		flow->end[direction] = end;
		if (p->payload)
			flow->unacked |= 1 << direction;
	}
	if (flags & TCP_ACK) {
		if (!(flow->has_acked & (1 << direction)) || before(flow->acked[direction], p->ack))
			flow->acked[direction] = p->ack;
		flow->has_acked |= 1 << direction;
		if (p->ack == flow->end[!direction])
			flow->unacked &= ~(1 << !direction);
	}
	flow->last_ack = (flags & (TCP_SYN | TCP_FIN | TCP_ACK)) == TCP_ACK ? 1 + direction : 0;
	flow->last_end = end;
	flow->timeout = flow->state == ESTABLISHED && flow->unacked ? UNACKNOWLEDGED : flow->state;
}

/* What one more packet means for its flow. True: the connection has just ended, give its count back. */
static __always_inline bool track(struct flow *flow, const struct packet *p, enum direction direction, u64 now)
{
	bool ended = false;

	bpf_spin_lock(&flow->lock);
	flow->seen = now;
	if (direction == REPLY)
		flow->replied = 1;
	if (p->tuple.protocol == IPPROTO_TCP) {
		track_tcp(flow, p, direction);
		if (is_closed(flow->state) && flow->counted) {
			flow->counted = 0;
			ended = true;
		}
	} else if (flow->replied && now > flow->created + STREAM_AFTER) {
		flow->state = UDP_STREAM;
		flow->timeout = UDP_STREAM;
	}
	bpf_spin_unlock(&flow->lock);
	return ended;
}

static __always_inline void pass_packet(struct __sk_buff *skb, struct flow *flow, const struct packet *p,
					enum direction direction, u64 now)
{
	u32 segments = skb->gso_segs ?: 1;

	__sync_fetch_and_add(&flow->packets[direction], segments);
	__sync_fetch_and_add(&flow->bytes[direction], p->total);
	if (track(flow, p, direction, now))
		give_back(&p->tuple, flow->source);
}

/* A new flow is entered, its count having been raised. 0, or negative: the table is full, or another
 * processor entered the same flow just now. */
static __always_inline long enter(struct __sk_buff *skb, const struct packet *p, const struct verdict *v, u64 now)
{
	struct flow flow = {
		.slot = v->slot,
		.policy = v->policy,
		.reason = v->reason,
		.created = now,
		.counted = 1,
	};

	flow.seen = now;
	copy_address(flow.source, v->source);
	flow.packets[ORIGINAL] = skb->gso_segs ?: 1;
	flow.bytes[ORIGINAL] = p->total;
	if (p->tuple.protocol == IPPROTO_TCP) {
		flow.state = p->tcp_flags & TCP_SYN ? SYN_SENT : ESTABLISHED;
		flow.end[ORIGINAL] = p->seq + p->payload + !!(p->tcp_flags & TCP_SYN);
		flow.acked[ORIGINAL] = p->ack;
		flow.has_acked = p->tcp_flags & TCP_ACK ? 1 << ORIGINAL : 0;
	} else {
		flow.state = UDP_UNREPLIED;
	}
	flow.timeout = flow.state;
	return flows.insert((void *)&p->tuple, &flow);
}
