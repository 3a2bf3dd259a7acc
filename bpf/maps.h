/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every map, and every structure that user space reads or writes. User space takes the layouts from BCC's map
 * descriptions, so this file is their only definition.
 *
 * Addresses are 16 bytes in network order; IPv4 is in its mapped form ::ffff:a.b.c.d (RFC 4291, 2.5.5.2), so that one
 * code path serves both families. Ports are in network order. Times are nanoseconds of CLOCK_MONOTONIC, with the
 * resolution of the timer's tick (1 to 10 ms). PIN_DIRECTORY, FLOWS and ORIGINS come from the compiler's flags.
 */

#define PINNED(type, key, value, name, entries, flags) \
	BPF_TABLE_PINNED(type, key, value, name, entries, PIN_DIRECTORY "/" #name, flags)

enum {
	SLOTS = 16384,    /* egress IPs; slot 0 is the shared addresses */
	POLICIES = 16384, /* policy ids; id 0 is "no policy" */
	RULES = 16384,
	RULE_WORDS = RULES / 64,
	SUMMARY_WORDS = RULE_WORDS / 64,
	SESSIONS = 1048576,
	HOSTS = 1048576,
	NEAREST_BUCKETS = 1024,
	CLIENTS = 65536,
	CLIENT_PREFIXES = FLOWS / 4, /* clients for which live flows are counted; those of others are not */
	INTERFACES = 1024,
	NEXT_HOPS = 65536,
	ON_LINK_RANGES = SLOTS,
	REASON_COUNTERS = 128,
	NO_SLOT = 0xffffffff,
};

enum direction { ORIGINAL, REPLY };
enum family { IPV4, IPV6, FAMILIES };

/* One address family of an egress IP: address = prefix | (client & ~mask). For IPv4 the mask
 * is all ones; for an IPv6 range the client's host bits select the address (nft_nat.c,
 * nft_nat_setup_netmap, does the same to the packet). */
struct egress_address {
	__be32 prefix[4];
	__be32 mask[4];
	u32 local;     /* belongs to this gateway */
	u32 available; /* this gateway holds the address at present */
};

struct egress {
	struct egress_address address[FAMILIES];
};
PINNED("array", int, struct egress, egresses, SLOTS, 0);

enum bank_bits {
	BANK = 1, /* the bank's number; the other bits are the lookups that its rules need */
	USES_SOURCE = 2,
	USES_SOURCE_PORT = 4,
	USES_PORT = 8,
	USES_PROTOCOL = 16,
	USES_SOURCE_REGION = 32,
	USES_DESTINATION_REGION = 64,
	USES_CLIENT = 128,
	USES_HOST = 256,
};
struct settings {
	u32 mark_mask;
	u32 mark_shift;
	u32 limit; /* connections per (egress address, protocol, origin address, origin port) */
	u32 bank;  /* the policy bank in force, and the lookups that its rules need: enum bank_bits */
	u32 proxy_tcp;
	u32 proxy_udp;
	u32 flows_per_client;      /* live flows of one client prefix */
	u32 unanswered_per_client; /* those of them that no origin has answered */
	u32 ready;                 /* 0: the tables are not filled, no packet may leave */
};
PINNED("array", int, struct settings, settings, 1, 0);

enum role { NO_ROLE, INSIDE, OUTSIDE, OTHER };
enum unfit { FIT, RENAMED, TAKEN };
struct interface {
	u32 role;
	u8 mac[6];      /* the address in neighbour advertisements */
	u16 ethernet;   /* 1: frames carry an Ethernet header */
	u32 any_source; /* 1: packets from here skip the source check */
	u32 filtered;   /* 1: other software handles arriving packets, and the fast path would bypass it */
	u32 unfit;      /* enum unfit: it had its role under another name, or is a port; egress packets do not pass */
	u8 name[16];    /* as the file lists it */
};
PINNED("hash", u32, struct interface, interfaces, INTERFACES, 0);

/* The MAC addresses with which upper interfaces send frames through a lower one (macvlan). */
struct upper_mac_key {
	u32 ifindex; /* of the lower interface */
	u8 mac[6];
	u16 pad;
};
PINNED("hash", struct upper_mac_key, u32, upper_macs, INTERFACES, 0);

/* One connection, by its original tuple. */
struct flow_key {
	__be32 client[4];
	__be32 origin[4];
	__be16 client_port;
	__be16 origin_port;
	u8 protocol;
	u8 pad[3];
};

/* conntrack's states (nf_conntrack_tcp.h), and the two of UDP. */
enum state {
	UDP_UNREPLIED,
	UDP_STREAM,
	SYN_SENT,
	SYN_RECV,
	ESTABLISHED,
	FIN_WAIT,
	CLOSE_WAIT,
	LAST_ACK,
	TIME_WAIT,
	CLOSE,
	SYN_SENT2,
	TIMEOUTS,
};

enum segment_kind { NOTHING, A_SYN, A_SYN_ACK, A_FIN, AN_ACK, A_RESET };

enum flow_flag {
	ASSURED = 1,       /* TCP: established and answered (IPS_ASSURED) */
	ENDED_BY_PEER = 2, /* the origin has sent a FIN or a reset, or the client a reset that the origin accepts */
	SIMULTANEOUS = 4,  /* both sides sent a SYN (IP_CT_TCP_SIMULTANEOUS_OPEN) */
	CHALLENGING = 8,   /* the next ACK may answer a SYN, not a FIN (IP_CT_EXP_CHALLENGE_ACK) */
	TRANSITORY = 16,   /* a reset has closed an established connection (RFC 6146, 3.5.2.2, "TRANS") */
	TELL_CONNTRACK =
		32, /* a sweep must tell conntrack the state, which it cannot know without the fast path's packets */
};

/*
 * A program holds a pointer to a flow without locking the map's bucket: another processor may delete the flow in the
 * meantime, and its memory may become another flow's. So every decision is made under the lock, after a check of
 * `identity` and `deleting` that the memory is still this flow's (is_current).
 */
struct flow {
	struct bpf_spin_lock lock; /* guards everything but the counters */
	u32 slot;
	u32 policy;
	u32 reason;
	__be32 egress_address[4];
	u64 created;
	u64 last_seen;
	u64 packets[2]; /* by direction */
	u64 bytes[2];
	u32 end[2];   /* highest sequence number + 1 that this side sent without a gap */
	u32 acked[2]; /* highest acknowledgement that this side sent */
	u32 last_ack; /* this and last_end: of the last plain ACK, or of a later segment that conntrack ignored */
	u32 last_end;
	u8 last; /* enum segment_kind of the last segment that was not INVALID */
	u8 last_direction;
	u8 seen_sides; /* bit per direction: end[] is valid */
	u8 has_acked;  /* bit per direction: acked[] is valid */
	u8 flags;      /* ASSURED, … */
	u8 state;
	u8 timeout;          /* the state whose timeout applies */
	u8 counted;          /* 1: the counters of its origin and its client include this flow */
	u8 replied;          /* 1: the origin has sent a packet */
	u8 closing;          /* 1: a SYN, FIN or RST is being handled, no fast-path entry may be created */
	__be16 egress_port;  /* after translation; 0: the flow has no fast-path entries */
	u8 spoken;           /* bit per direction: this side has sent since the reset (TRANSITORY) */
	u8 gaps;             /* bit per direction: a segment has left a gap after end[] */
	u8 fins;             /* two bits per direction: a FIN that left a gap after end[] is held; A_CUT_FIN */
	u32 fin_end[2];      /* sequence number after the held FIN */
	u64 fin_seen;        /* when the last held FIN arrived */
	u64 fast_packets[2]; /* of removed fast-path entries; present entries have counters of their own */
	u64 fast_bytes[2];
	u64 identity; /* hash of the tuple (identity_of); 0: user space inserted the flow, the next packet sets it */
	u64 deleting; /* 1: the flow is no longer counted and leaves the map. The last field, as it is copied last */
};
PINNED("hash", struct flow_key, struct flow, flows, FLOWS, 0);
/* The flows in the order of their creation: the candidates for eviction when a table is full. */
BPF_QUEUESTACK_PINNED("queue", oldest_flows, struct flow_key, FLOWS, 0, PIN_DIRECTORY "/oldest_flows");

/* The fast path: the kernel's changes to a flow's packets, recorded from one of them; one entry for each direction.
 * The entries are in a hash table of buckets of four: packets of a flow whose bucket is full take the kernel's path.
 * An entry is one cache line, because the cost of a packet among many flows is the number of lines that it touches.
 * No entry outlives its flow. */
enum {
	BUCKET_ENTRIES = 4,
	IPV6_KIND = 0x80,
};

struct fast_entry {
	__be32 client[4];
	__be32 origin[4];
	__be16 client_port;
	__be16 origin_port;
	__be16 egress_port; /* after translation; the egress address follows from slot and client */
	u16 slot;
	u32 until;      /* jiffies; from then on packets take the kernel's path, until one of them renews the entry */
	u16 generation; /* the entry is valid while this equals that of struct fast_path */
	u16 next_hop;
	u16 largest; /* bytes from the network header on of the largest packet, or GSO segment, that has passed */
	u8 kind;     /* protocol, and IPV6_KIND */
	u8 reason;   /* REASON_REPLY for the origin's packets, the flow's reason for the client's */
	u32 end;     /* TCP: like the flow's end[], but newer */
	u32 packets; /* since the entry was created */
	u32 bytes;
};

struct fast_bucket {
	struct fast_entry entry[BUCKET_ENTRIES];
};
/* A mappable map begins on a page boundary. */
PINNED("array", int, struct fast_bucket, fast_buckets, FAST_BUCKETS, BPF_F_MMAPABLE);

/* Two interfaces, and the Ethernet addresses of frames from the second one to a neighbour. */
struct next_hop {
	u32 in;
	u32 out;
	u8 ethernet[12]; /* destination, source */
	u32 until;       /* jiffies: later than that of any entry that names this next hop */
};
PINNED("array", int, struct next_hop, next_hops, NEXT_HOPS, 0);

/* Programs write a bucket under its lock, and a next hop under the lock with the same index. The count of entries
 * for replies tells whether the bucket, whose memory is rarely in a cache, must be read at all. */
struct bucket_lock {
	struct bpf_spin_lock lock;
	u32 reply_entries; /* number of the bucket's entries that are for replies */
};
PINNED("array", int, struct bucket_lock, bucket_locks, FAST_BUCKETS, 0);

struct fast_path {
	u32 generation;      /* 16 bits; a new value invalidates all entries; 0: the fast path is off */
	u32 lifetime;        /* jiffies for which an entry is valid */
	u64 seed;            /* of the hash, so that collisions of tuples are not predictable */
	u32 last_generation; /* for user space: the generation before the fast path was switched off */
};
PINNED("array", int, struct fast_path, fast_path, 1, 0);

/* The domain in which egress ports must be unique, and the key of the limit. */
struct origin_key {
	__be32 egress_address[4];
	__be32 origin[4];
	__be16 origin_port;
	u8 protocol;
	u8 pad;
};

struct origin {
	struct bpf_spin_lock lock;
	u32 active;
	u32 peak;
	u32 slot;
	u32 deleting; /* 1: the entry leaves the map, repeat the lookup */
	u32 pad;
	u64 total;
	u64 refused;
	u64 used;
};
PINNED("hash", struct origin_key, struct origin, origins, ORIGINS, 0);
/* Origins whose last live flow has ended, the oldest first; they may have live flows again. */
BPF_QUEUESTACK_PINNED("queue", unused_origins, struct origin_key, ORIGINS, 0, PIN_DIRECTORY "/unused_origins");

struct client_key {
	__be32 client[4]; /* an address, or a prefix whose other words are 0 */
};

/* The counts of one client: an IPv4 address, or an IPv6 /64, all of which one host may use. */
struct client_prefix {
	struct bpf_spin_lock lock;
	u32 flows; /* live flows */
	u32 unanswered;
	u32 deleting; /* as in struct origin */
	u64 total;
	u64 refused;
	u64 used;
};
PINNED("hash", struct client_key, struct client_prefix, client_prefixes, CLIENT_PREFIXES, 0);

/* The egress of a client without a matching policy, which later flows keep. Losing an entry costs this stickiness
 * only, so the map may be an LRU; flows and origins may not. */
PINNED("lru_hash", struct client_key, u32, clients, CLIENTS, 0);
PINNED("array", int, u32, nearest, NEAREST_BUCKETS * 2, 0); /* bucket * FAMILIES + family → slot */

struct prefix_key {
	u32 length;
	__be32 address[4];
};
PINNED("lpm_trie", struct prefix_key, u32, on_link, ON_LINK_RANGES, BPF_F_NO_PREALLOC);

/* The profile of a client, and the set of names that an address has for a client. User space assigns one number to all
 * profiles, or sets, that are equal for the policies. 0: nothing is known. */
PINNED("hash", struct client_key, u32, sessions, SESSIONS, BPF_F_NO_PREALLOC);
struct host_key {
	__be32 client[4]; /* all zero: every client */
	__be32 address[4];
};
PINNED("hash", struct host_key, u32, hosts, HOSTS, BPF_F_NO_PREALLOC);

/* The policy banks: two of each inner map; settings.bank selects the one in force. User space
 * creates the inner maps like these prototypes, with as many elements as it needs. */
struct destination {
	u32 set;
	u32 private_network;
};
struct region_sets {
	u32 source;
	u32 destination;
};
struct rule_set {
	u64 summary[SUMMARY_WORDS]; /* bit w of all words: words[w] is not 0 */
	u64 words[RULE_WORDS];
};
struct rule {
	u32 policy;
	u32 slot[FAMILIES];
	u32 fallback[FAMILIES]; /* NO_SLOT: refuse */
};
#define BANKS(name, type, key, value, flags)                   \
	BPF_F_TABLE(type, key, value, name##_inner, 1, flags); \
	PINNED("array_of_maps$" #name "_inner", int, u32, name, 2, 0)

/* Before Linux 6.2 an inner map and its prototype must both have BTF, or neither, if the value is a
 * structure (bpf_map_meta_equal compares timer_off). The inner maps that user space creates have none. */
#pragma push_macro("BPF_ANNOTATE_KV_PAIR")
#undef BPF_ANNOTATE_KV_PAIR
#define BPF_ANNOTATE_KV_PAIR(...) struct no_btf
BANKS(source_prefixes, "lpm_trie", struct prefix_key, u32, BPF_F_NO_PREALLOC);
BANKS(destination_prefixes, "lpm_trie", struct prefix_key, struct destination, BPF_F_NO_PREALLOC);
BANKS(regions, "lpm_trie", struct prefix_key, u32, BPF_F_NO_PREALLOC);
BANKS(source_port_sets, "array", u32, u32, BPF_F_INNER_MAP);
BANKS(port_sets, "array", u32, u32, BPF_F_INNER_MAP);
BANKS(protocol_sets, "array", u32, u32, BPF_F_INNER_MAP);
BANKS(region_sets, "array", u32, struct region_sets, BPF_F_INNER_MAP);
BANKS(profile_sets, "array", u32, u32, BPF_F_INNER_MAP);
BANKS(name_sets, "array", u32, u32, BPF_F_INNER_MAP);
BANKS(rule_sets, "array", u32, struct rule_set, BPF_F_INNER_MAP);
BANKS(rules, "array", u32, struct rule, BPF_F_INNER_MAP);
#pragma pop_macro("BPF_ANNOTATE_KV_PAIR")

/* For user space: how many rule_sets of each bank are in use and, from index 2 on, how many more found no room. */
PINNED("array", int, u32, sets_taken, 4, 0);
/* For explain: the rules that the client, and the host, match by the question's assumptions (enum override). */
PINNED("array", int, struct rule_set, overrides, 2, 0);
/* The verdict on a new flow; `explained` contains that of the latest question (explain). */
struct verdict {
	u32 reason;
	u32 slot;
	u32 policy;
	__be32 egress_address[4];
	u32 active; /* of the origin, before this flow */
	u32 limit;
};
PINNED("array", int, struct verdict, explained, 1, 0);

struct metrics {
	u64 packets;
	u64 flows;
};
PINNED("percpu_array", int, struct metrics, reasons, REASON_COUNTERS, 0);
/* Events in the tables: the number of evicted flows, and by how much `recount` has corrected counts. */
enum event { EVICTED_FLOWS, CORRECTED_ORIGINS, CORRECTED_CLIENTS, EVENTS };
PINNED("array", int, u64, events, EVENTS, 0);
struct hits {
	u64 flows;
	u64 last;
};
PINNED("array", int, struct hits, policy_hits, POLICIES, 0);
PINNED("array", int, u64, timeouts, TIMEOUTS, 0);
