// Package routing decides where a request goes: which instances may serve it,
// in which order, and why.
//
// [Pick] orders the recipients of one request. [Score] says how much an
// instance has to give, from 0 to 100; it breaks ties between instances with as
// many requests in flight, and is published as the weight that Envoy balances
// by while no picker answers.
//
// Health filters before load decides. An instance that fails fast has a short
// queue and low latency, so a weighted sum alone would send it everything: what
// is not ready is no candidate, whatever it scores.
//
// The package is pure. It keeps nothing between calls, reads no clock, does no
// I/O and starts no goroutine: the same input gives the same answer in a
// router, a test and a simulation.
package routing
