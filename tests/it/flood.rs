//! Floods: refused with a code, memory flat, others served.
