/* SPDX-License-Identifier: GPL-2.0-only */
/* Nothing of it is used here; BCC includes it. */
