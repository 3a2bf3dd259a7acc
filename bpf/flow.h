/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The states of a flow, as conntrack defines them, so that the enforcer's counts equal conntrack's: the states and the
 * judgement of resets of nf_conntrack_proto_tcp.c, the streams of nf_conntrack_proto_udp.c. Windows are not tracked:
 * conntrack sees only some packets of a flow on the fast path, so it is configured to be liberal
 * (nf_conntrack_tcp_be_liberal, nf_conntrack_tcp_ignore_invalid_rst).
 */

enum {
	STREAM_AFTER = 2000000000, /* ns after which an answered UDP flow is a stream */
	BOTH_SIDES = 1 << ORIGINAL | 1 << REPLY,
	A_CUT_FIN = 4, /* in flow.fins, by direction: the FIN came in a first fragment */
	LARGEST_SEGMENT = 65535,
};

static __always_inline bool is_closed(u32 state)
{
	return state == TIME_WAIT || state == CLOSE;
}

/* The kind of a segment by its flags without PSH, ECE and CWR. NOTHING: a combination that conntrack calls INVALID. */
static __always_inline u32 segment_of(u32 flags)
{
	const u64 valid = 1ULL << TCP_SYN | 1ULL << (TCP_SYN | TCP_URG) | 1ULL << (TCP_SYN | TCP_ACK) |
			  1ULL << TCP_RST | 1ULL << (TCP_RST | TCP_ACK) | 1ULL << (TCP_FIN | TCP_ACK) |
			  1ULL << (TCP_FIN | TCP_ACK | TCP_URG) | 1ULL << TCP_ACK | 1ULL << (TCP_ACK | TCP_URG);

	flags &= TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK | TCP_URG;
	if (!(valid >> flags & 1))
		return NOTHING;
	if (flags & TCP_RST)
		return A_RESET;
	if (flags & TCP_SYN)
		return flags & TCP_ACK ? A_SYN_ACK : A_SYN;
	return flags & TCP_FIN ? A_FIN : AN_ACK;
}

/* Whether a segment may begin a connection: a SYN, or (picked up midway) a plain ACK. */
static __always_inline bool begins(const struct packet *p)
{
	u32 segment = segment_of(p->tcp_flags);

	return p->tuple.protocol != IPPROTO_TCP || segment == A_SYN || segment == AN_ACK;
}

/* Whether a client opens another connection on the tuple of a closed one. */
static __always_inline bool reopens(const struct flow *flow, const struct packet *p)
{
	return is_closed(flow->state) && segment_of(p->tcp_flags) == A_SYN;
}

/* The next states by the present state, SYN_SENT first: the rows of tcp_conntracks. */
#define ROW(ss, sr, es, fw, cw, la, tw, cl, s2)                                                              \
	((u64)(ss) | (u64)(sr) << 4 | (u64)(es) << 8 | (u64)(fw) << 12 | (u64)(cw) << 16 | (u64)(la) << 20 | \
	 (u64)(tw) << 24 | (u64)(cl) << 28 | (u64)(s2) << 32)

enum {
	IGNORED = 14, /* conntrack accepts the segment and remembers it */
	INVALID = 15, /* conntrack does not accept the segment: the nftables table drops it */
};

static __always_inline u32 next_state(u32 state, u32 segment, enum direction direction)
{
	u64 row;

	if (state < SYN_SENT)
		return INVALID;
	if (segment == A_SYN)
		row = direction == ORIGINAL
			      ? ROW(SYN_SENT, IGNORED, IGNORED, IGNORED, IGNORED, IGNORED, IGNORED, IGNORED, SYN_SENT2)
			      : ROW(SYN_SENT2, INVALID, INVALID, INVALID, INVALID, INVALID, INVALID, INVALID,
				    SYN_SENT2);
	else if (segment == A_SYN_ACK)
		row = direction == ORIGINAL
			      ? ROW(INVALID, SYN_RECV, INVALID, INVALID, INVALID, INVALID, INVALID, INVALID, SYN_RECV)
			      : ROW(SYN_RECV, IGNORED, IGNORED, IGNORED, IGNORED, IGNORED, IGNORED, IGNORED, SYN_RECV);
	else if (segment == A_FIN)
		row = ROW(INVALID, FIN_WAIT, FIN_WAIT, LAST_ACK, LAST_ACK, LAST_ACK, TIME_WAIT, CLOSE, INVALID);
	else if (segment == AN_ACK)
		row = direction == ORIGINAL ? ROW(INVALID, ESTABLISHED, ESTABLISHED, CLOSE_WAIT, CLOSE_WAIT, TIME_WAIT,
						  TIME_WAIT, CLOSE, INVALID)
					    : ROW(IGNORED, SYN_RECV, ESTABLISHED, CLOSE_WAIT, CLOSE_WAIT, TIME_WAIT,
						  TIME_WAIT, CLOSE, IGNORED);
	else
		row = segment == A_RESET ? ROW(CLOSE, CLOSE, CLOSE, CLOSE, CLOSE, CLOSE, CLOSE, CLOSE, CLOSE) : ~0ULL;
	return row >> (state - SYN_SENT) * 4 & 15;
}

/* The effect of one segment on its flow beyond the state. */
enum fate {
	STAYS, /* no effect, not even on the start of its idle time */
	MOVES,
	DIES,    /* conntrack deletes its entry at once */
	GOES_ON, /* both sides have sent after a reset, and this segment is the client's */
};

struct segment {
	u32 kind;
	u32 direction;
	u32 end; /* sequence number after the segment */
};

static __always_inline bool follows(const struct flow *flow, u32 kind, u32 direction)
{
	return flow->last == kind && flow->last_direction == direction;
}

static __always_inline bool was_established(u32 state)
{
	return state >= ESTABLISHED && state <= CLOSE;
}

/*
 * Whether a reset has the sequence number that its receiver expects: a host answers any other reset without accepting
 * it (RFC 5961, 3.2), and the connection continues. The expected number is the last one that the receiver has
 * acknowledged or, while data is unacknowledged, the one that the sender has reached, in total or with the segment
 * before the reset.
 */
static __always_inline bool is_exact(const struct flow *flow, const struct packet *p, u32 direction)
{
	u32 side = 1 << (direction & 1), peer = !direction;

	if (flow->has_acked & 1 << peer && before(p->seq, flow->acked[peer]))
		return false;
	return (flow->has_acked & 1 << peer && p->seq == flow->acked[peer]) ||
	       (flow->seen_sides & side && p->seq == flow->end[direction & 1]) ||
	       (follows(flow, AN_ACK, direction) && p->seq == flow->last_end &&
		!before(flow->end[direction & 1], p->seq));
}

/*
 * Whether a FIN directly follows the data that its side has sent. A receiver ignores a FIN after a gap until the gap is
 * filled; the flow ignores it until the receiver acknowledges it: the gap may be a segment that was lost before the
 * gateway, or the FIN may be forged. A FIN before the end is always forged. conntrack accepts both (it is liberal).
 */
static __always_inline bool is_in_place(const struct flow *flow, const struct packet *p, const struct segment *s)
{
	u32 end = flow->end[s->direction & 1];

	return !(flow->seen_sides & 1 << (s->direction & 1)) ||
	       (!before(end, p->seq) && (p->fragment || !before(s->end, end)));
}

static __always_inline void hold_fin(struct flow *flow, const struct packet *p, const struct segment *s, u64 now)
{
	u32 direction = s->direction & 1;

	flow->flags |= TELL_CONNTRACK;
	if (!before(flow->end[direction], p->seq))
		return;
	flow->fins |= (p->fragment ? 1 | A_CUT_FIN : 1) << direction;
	flow->fin_end[direction] = s->end;
	flow->fin_seen = now;
}

/* Applies a held FIN to the state when the peer acknowledges it. */
static __always_inline void confirm_fin(struct flow *flow, const struct packet *p, u32 direction)
{
	u32 peer = !direction, side = 1 << peer, next;
	/* A first fragment does not tell the length of its segment. */
	u32 at_most = flow->fins & A_CUT_FIN << peer ? LARGEST_SEGMENT : 0;

	if (!(flow->fins & side) || !(p->tcp_flags & TCP_ACK) || p->ack - flow->fin_end[peer] > at_most)
		return;
	flow->fins &= ~(side | A_CUT_FIN << peer);
	flow->gaps &= ~side;
	flow->end[peer] = p->ack;
	next = next_state(flow->state, A_FIN, peer);
	if (next < IGNORED)
		flow->state = next;
	if (peer == REPLY)
		flow->flags |= ENDED_BY_PEER;
}

/* conntrack's judgement of a reset. */
enum reset {
	CHALLENGED, /* the state stays until the peer has answered */
	CHECKED,    /* accepted if its acknowledgement can be right */
	BELIEVED,
};

static __always_inline enum reset judge_reset(const struct flow *flow, const struct packet *p, u32 direction)
{
	bool settled = flow->state == ESTABLISHED && flow->flags & ASSURED;
	enum reset verdict = CHECKED;

	if (flow->state >= FIN_WAIT && flow->state <= CLOSE)
		return BELIEVED;
	if (flow->has_acked & (1 << !direction) && flow->last != A_SYN) {
		if (p->seq == 0 && !settled)
			return CHECKED;
		if (!settled || is_exact(flow, p, direction))
			return CHECKED;
		verdict = CHALLENGED;
	}
	/* The reset answers a SYN, or an ACK that was ignored. */
	if (flow->last_direction != direction &&
	    ((flow->replied && flow->last == A_SYN) || (!(flow->flags & ASSURED) && flow->last == AN_ACK)) &&
	    p->ack == flow->last_end)
		return verdict == CHECKED ? BELIEVED : CHALLENGED;
	if (flow->state == SYN_SENT && follows(flow, AN_ACK, REPLY) && p->seq == flow->last_ack)
		return BELIEVED;
	return verdict;
}

/* Records the end of a segment. A gap, left by a segment that was lost before the gateway or took the fast path,
 * ends with an acknowledgement beyond it. */
static __always_inline void note_end(struct flow *flow, const struct packet *p, const struct segment *s)
{
	u32 direction = s->direction & 1, seen = 1 << direction;

	if (s->kind == A_RESET)
		return;
	if (!(flow->seen_sides & seen) || p->tcp_flags & TCP_SYN)
		flow->end[direction] = s->end;
	else if (before(flow->end[direction], p->seq))
		flow->gaps |= seen;
	advance(&flow->end[direction], p->seq, s->end);
	flow->seen_sides |= seen;
}

/* Records the highest sequence number and acknowledgement of each side. An acknowledgement of more than was seen,
 * without a gap, is not recorded: a genuine one is repeated. */
static __always_inline void note_numbers(struct flow *flow, const struct packet *p, const struct segment *s)
{
	u32 direction = s->direction & 1, peer = !direction;
	u32 seen = 1 << direction, peer_seen = 1 << peer;

	note_end(flow, p, s);
	if (!(p->tcp_flags & TCP_ACK))
		return;
	if (flow->seen_sides & peer_seen && before(flow->end[peer], p->ack)) {
		if (!(flow->gaps & peer_seen))
			return;
		flow->end[peer] = p->ack;
		flow->gaps &= ~peer_seen;
	}
	if (!(flow->has_acked & seen) || before(flow->acked[direction], p->ack))
		flow->acked[direction] = p->ack;
	flow->has_acked |= seen;
	if (s->kind == AN_ACK) {
		flow->last_end = s->end;
		flow->last_ack = p->ack;
	}
}

/* Records a segment that passes without changing the state: a later answer to it may change the state. */
static __always_inline void remember_ignored(struct flow *flow, const struct packet *p, const struct segment *s)
{
	flow->last = s->kind;
	flow->last_direction = s->direction;
	flow->last_end = s->end;
	if (s->kind == A_SYN && s->direction == ORIGINAL) {
		flow->flags &= ~(SIMULTANEOUS | CHALLENGING);
		/* A host in LAST_ACK answers a SYN with an ACK that acknowledges no FIN (RFC 5961, 4). */
		if (flow->state == LAST_ACK)
			flow->flags |= CHALLENGING;
	}
	if (flow->state == SYN_SENT && s->kind == AN_ACK && s->direction == REPLY)
		flow->last_ack = p->ack;
}

/* The timeout of a flow after a segment that moved it. After a reset, and for a connection that was picked up midway
 * and is not answered, it is shorter than that of an established connection. */
static __always_inline u32 timeout_of(const struct flow *flow, const struct segment *s)
{
	if (s->kind == A_RESET)
		return CLOSE;
	return flow->state == ESTABLISHED && !flow->replied && s->direction == ORIGINAL ? SYN_SENT : flow->state;
}

/* A reset closes an established connection, until both sides continue as if there had been no reset. */
static __always_inline void close_by_reset(struct flow *flow, u32 state)
{
	flow->flags |= TRANSITORY;
	flow->spoken = 0;
	/* conntrack compares the reset's number with the packets that it saw; those of the fast path are missing. */
	if (state == ESTABLISHED && flow->fast_packets[ORIGINAL] + flow->fast_packets[REPLY])
		flow->flags |= TELL_CONNTRACK;
}

/* Whether the hosts have opened a new connection with the SYN that was ignored. */
static __always_inline bool answers_ignored_syn(const struct flow *flow, const struct packet *p,
						const struct segment *s)
{
	return s->kind == A_SYN_ACK && follows(flow, A_SYN, ORIGINAL) && p->ack == flow->last_end;
}

static __always_inline void restart_numbers(struct flow *flow)
{
	flow->end[ORIGINAL] = flow->last_end;
	flow->seen_sides = 1 << ORIGINAL;
	flow->has_acked = 0;
	flow->gaps = 0;
	flow->fins = 0;
	flow->flags &= ~CHALLENGING;
}

/* The state after the segment, without the judgement of a reset; INVALID: the segment does not change the state. A
 * FIN that is held counts as an ACK until the peer acknowledges it. */
static __always_inline u32 state_after(struct flow *flow, const struct packet *p, struct segment *s, u64 now)
{
	u32 state = flow->state;
	u32 next = next_state(state, s->kind, s->direction);

	if (next == INVALID)
		return INVALID;
	if (next == IGNORED) {
		if (!answers_ignored_syn(flow, p, s)) {
			remember_ignored(flow, p, s);
			return INVALID;
		}
		next = SYN_RECV;
		restart_numbers(flow);
	}
	if (state == LAST_ACK && s->kind == AN_ACK && follows(flow, A_SYN, !s->direction) &&
	    flow->flags & CHALLENGING) {
		flow->flags &= ~CHALLENGING;
		return INVALID;
	}
	if (s->kind == A_FIN && !is_in_place(flow, p, s)) {
		hold_fin(flow, p, s, now);
		s->kind = AN_ACK;
		next = state;
	}
	if (next == SYN_SENT2)
		flow->flags |= SIMULTANEOUS;
	if (next == SYN_RECV && s->kind == AN_ACK && flow->flags & SIMULTANEOUS)
		next = ESTABLISHED;
	return next;
}

/* Records whether the segment ends the connection. A client could send a FIN or reset that only the gateway sees: so
 * only an origin's segment, or a reset that the origin must accept (`exact`), ends the count before the timeout. */
static __always_inline void note_end_of_connection(struct flow *flow, const struct segment *s, u32 state, bool exact)
{
	bool closed = s->kind == A_RESET && flow->state == CLOSE;

	if ((s->direction == REPLY && s->kind == A_FIN) ||
	    (closed && (s->direction == REPLY || !was_established(state) || exact)))
		flow->flags |= ENDED_BY_PEER;
	if (closed && state >= ESTABLISHED && state <= LAST_ACK)
		close_by_reset(flow, state);
	else if (flow->flags & TRANSITORY && s->kind == AN_ACK)
		flow->spoken |= 1 << (s->direction & 1);
}

static __always_inline enum fate track_tcp(struct flow *flow, const struct packet *p, enum direction direction, u64 now)
{
	struct segment s = { .kind = segment_of(p->tcp_flags), .direction = direction };
	enum reset reset = CHECKED;
	bool exact = false;
	u32 state, next;

	s.end = p->seq + p->payload + !!(p->tcp_flags & TCP_SYN) + !!(p->tcp_flags & TCP_FIN);
	if (s.kind != NOTHING)
		confirm_fin(flow, p, direction);
	state = flow->state;
	next = state_after(flow, p, &s, now);
	if (next == INVALID)
		return STAYS;
	if (s.kind == A_RESET) {
		exact = is_exact(flow, p, direction);
		reset = judge_reset(flow, p, direction);
		if (reset == CHALLENGED)
			next = state;
	}
	if (reset != BELIEVED)
		note_numbers(flow, p, &s);
	flow->last = s.kind;
	flow->last_direction = direction;
	flow->state = next;
	note_end_of_connection(flow, &s, state, exact);
	if (!flow->replied) {
		if (s.kind == A_RESET)
			return DIES;
		/* A client that repeats its SYN does not extend the timeout. */
		if (s.kind == A_SYN && state == SYN_SENT)
			return STAYS;
	}
	flow->timeout = timeout_of(flow, &s);
	if (flow->replied && next == ESTABLISHED && (state == SYN_RECV || state == ESTABLISHED))
		flow->flags |= ASSURED;
	return s.kind == AN_ACK && direction == ORIGINAL && flow->spoken == BOTH_SIDES ? GOES_ON : MOVES;
}

/* A 64-bit hash of the tuple. Collisions are rare, and harmless unless the memory of one flow becomes the other's
 * while a program handles a packet of the first. */
static __always_inline u64 identity_of(const struct flow_key *tuple)
{
	u64 ports = pair(tuple->client_port, tuple->origin_port) ^ (u64)tuple->protocol << 16;
	u64 identity =
		mix(mix(ports, pair(tuple->client[3], tuple->origin[3])), pair(tuple->client[0], tuple->origin[0]));

	identity =
		mix(mix(identity, pair(tuple->client[1], tuple->origin[1])), pair(tuple->client[2], tuple->origin[2]));
	return identity ?: 1;
}

/* Under the flow's lock: whether the memory is still this flow's, and no program is deleting it. */
static __always_inline bool is_current(struct flow *flow, u64 identity)
{
	if (flow->deleting)
		return false;
	if (!flow->identity)
		flow->identity = identity;
	return flow->identity == identity;
}

/* A TCP flow is answered when its handshake is complete, because a host that only sends SYNs gets SYN/ACKs, too; a
 * UDP flow with the first reply. */
static __always_inline bool is_answered(const struct flow *flow)
{
	/* Without a branch, for the verifier of Linux 6.1 (eviction.h calls this in a loop). */
	return (flow->flags & ASSURED) | (flow->replied & (flow->state < SYN_SENT));
}

enum {
	UNANSWERED = 1, /* the client's count of unanswered flows decreases, too */
	GONE = 2,       /* the flow was deleted after its lookup, or a new flow replaces it */
	COUNTED = 4,    /* the flow was counted until now: the caller releases it */
	DELETED = 8,    /* the flow is to leave the map: the caller deletes it */
	ANSWERED = 16,  /* the flow became answered with this packet (is_answered) */
	RETURNS = 32,   /* both sides have continued after a reset: the caller admits the flow again */
};

/* Under the flow's lock: the flow is no longer counted. */
static __always_inline u32 uncount(struct flow *flow)
{
	u32 ended = flow->counted ? COUNTED : 0;

	flow->counted = 0;
	return ended | !is_answered(flow);
}

/* Under the flow's lock. DELETED is returned once, and the flow must not be used after end_flow. */
static __always_inline u32 begin_deletion(struct flow *flow)
{
	flow->closing = 1;
	flow->deleting = 1;
	return uncount(flow) | DELETED;
}

/* After the lock is released: deletes and releases the flow as `ended` says. */
static __always_inline void end_flow(struct flow *flow, const struct flow_key *tuple, u32 ended)
{
	__be32 address[4];

	copy_address(address, flow->egress_address);
	if (ended & DELETED)
		flows.delete((void *)tuple);
	if (ended & COUNTED)
		release(tuple, address, ended & UNANSWERED, false);
}

/* Applies one more packet to its flow and returns the flags above. COUNTED, DELETED and ANSWERED are returned once. */
static __always_inline u32 track(struct flow *flow, const struct packet *p, enum direction direction, u64 identity,
				 u64 now)
{
	enum fate fate = MOVES;
	u32 result = 0;
	bool answered;

	bpf_spin_lock(&flow->lock);
	if (!is_current(flow, identity)) {
		result = GONE;
		goto unlock;
	}
	answered = is_answered(flow);
	if (p->tuple.protocol == IPPROTO_TCP) {
		bool reopened = direction == ORIGINAL && reopens(flow, p);

		if (!reopened)
			fate = track_tcp(flow, p, direction, now);
		if (reopened)
			result = begin_deletion(flow) | GONE;
		else if (fate == DIES)
			result = begin_deletion(flow);
		else if (is_closed(flow->state) && flow->flags & ENDED_BY_PEER)
			result = uncount(flow);
		if (fate == GOES_ON)
			result |= RETURNS;
	} else if ((flow->replied || direction == REPLY) && now > flow->created + STREAM_AFTER) {
		flow->state = UDP_STREAM;
		flow->timeout = UDP_STREAM;
	}
	if (fate != STAYS)
		flow->last_seen = now;
	if (direction == REPLY)
		flow->replied = 1;
	if (!answered && flow->counted && is_answered(flow))
		result |= ANSWERED;
unlock:
	bpf_spin_unlock(&flow->lock);
	return result;
}

/* Admits a flow again whose sides have both continued after a reset (RFC 6146, 3.5.2.2: from TRANS back to
 * ESTABLISHED). 0, or the reason of the refusal: other flows have taken its room. */
static __always_inline int return_flow(struct flow *flow, const struct flow_key *tuple, u64 identity,
				       const struct settings *s, u64 now)
{
	bool counted = flow->counted, returned = false, answered = false;
	int reason = counted ? 0 : admit(tuple, flow->egress_address, flow->slot, s, now);

	if (reason)
		return reason;
	bpf_spin_lock(&flow->lock);
	if (is_current(flow, identity) && flow->counted == counted && flow->spoken == BOTH_SIDES) {
		answered = counted && is_answered(flow);
		flow->counted = 1;
		flow->state = ESTABLISHED;
		flow->timeout = ESTABLISHED;
		flow->flags = (flow->flags & ~(ENDED_BY_PEER | TRANSITORY)) | ASSURED | TELL_CONNTRACK;
		flow->spoken = 0;
		flow->closing = 0;
		returned = true;
	}
	bpf_spin_unlock(&flow->lock);
	if (returned && !answered)
		uncount_client(tuple, 0, 1);
	else if (!counted)
		release(tuple, flow->egress_address, 1, true);
	return 0;
}

/* Prevents the creation of fast-path entries from now on. False: the flow was deleted after its lookup. */
static __always_inline bool begin_closing(struct flow *flow, u64 identity)
{
	bool current;

	bpf_spin_lock(&flow->lock);
	current = is_current(flow, identity);
	if (current)
		flow->closing = 1;
	bpf_spin_unlock(&flow->lock);
	return current;
}

/* Applies a packet to its flow and carries out the result of track(), which it returns; the caller handles RETURNS. */
static __always_inline u32 pass_packet(struct __sk_buff *skb, struct flow *flow, const struct packet *p,
				       enum direction direction, u64 identity, u64 now)
{
	bool closing = p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST);
	u32 result;

	if (closing) {
		if (!begin_closing(flow, identity))
			return GONE;
		remove_entries(flow, &p->tuple);
	}
	result = track(flow, p, direction, identity, now);
	if (result & (COUNTED | DELETED))
		end_flow(flow, &p->tuple, result);
	if (result & (GONE | DELETED))
		return result;
	if (result & COUNTED)
		oldest_flows.push((void *)&p->tuple, BPF_EXIST);
	__sync_fetch_and_add(&flow->packets[direction], skb->gso_segs ?: 1);
	__sync_fetch_and_add(&flow->bytes[direction], p->total);
	/* If the state is ESTABLISHED, the segment was ignored or opened the connection: entries are allowed again.
	 * Otherwise a packet of the other direction may have allowed them too early. */
	if (flow->state == ESTABLISHED) {
		if (flow->closing)
			flow->closing = 0;
	} else if (closing) {
		remove_entries(flow, &p->tuple);
	}
	if (result & ANSWERED)
		uncount_client(&p->tuple, 0, 1);
	return result;
}

/* Inserts a new flow, which is counted already. 0, or negative: the table is full (-E2BIG), or another
 * processor has inserted the same flow since the lookup (-EEXIST). */
static __always_inline long create_flow(struct __sk_buff *skb, const struct packet *p, const struct verdict *v,
					enum direction direction, u64 now)
{
	struct flow flow = {
		.slot = v->slot,
		.policy = v->policy,
		.reason = v->reason,
		.created = now,
		.last_seen = now,
		.counted = 1,
		.identity = identity_of(&p->tuple),
	};
	long result;

	copy_address(flow.egress_address, v->egress_address);
	if (direction == ORIGINAL) {
		flow.packets[ORIGINAL] = skb->gso_segs ?: 1;
		flow.bytes[ORIGINAL] = p->total;
	}
	if (direction == REPLY) {
		/* The origin opens the connection: as a simultaneous open in which the client's SYN came first. The
		 * caller applies the packet itself afterwards. */
		flow.state = p->tuple.protocol == IPPROTO_TCP ? SYN_SENT : UDP_UNREPLIED;
		flow.timeout = flow.state;
	} else if (p->tuple.protocol == IPPROTO_TCP) {
		flow.last = segment_of(p->tcp_flags);
		flow.state = flow.last == A_SYN ? SYN_SENT : ESTABLISHED;
		flow.timeout = SYN_SENT;
		flow.end[ORIGINAL] = p->seq + p->payload + (flow.last == A_SYN);
		flow.seen_sides = 1 << ORIGINAL;
	} else {
		flow.state = UDP_UNREPLIED;
		flow.timeout = UDP_UNREPLIED;
	}
	result = flows.insert((void *)&p->tuple, &flow);
	if (!result)
		oldest_flows.push((void *)&p->tuple, BPF_EXIST);
	return result;
}
