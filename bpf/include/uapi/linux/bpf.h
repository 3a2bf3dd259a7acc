/* SPDX-License-Identifier: GPL-2.0-only */
/* Empty: BCC brings its own. */
