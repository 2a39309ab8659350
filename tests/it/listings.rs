//! Listings, search and news, as members see them.
