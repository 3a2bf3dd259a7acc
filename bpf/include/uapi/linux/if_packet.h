/* SPDX-License-Identifier: GPL-2.0-only */
/* BCC asks for uapi/linux/if_packet.h; here it is found as linux/if_packet.h too. */
#include_next <linux/if_packet.h>
