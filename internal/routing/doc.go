// Package routing decides where a request goes: which instances may serve it,
// in which order, and why.
//
// [Pick] orders the recipients of one request by the [Policy] of its model, as
// a picker asks for each request:
//
//	decision := routing.Pick(routing.Request{ID: id, Model: model, Recipients: kids, …}, candidates)
//	if len(decision.Instances) == 0 { … } // decision.Reason says why
//
// [Candidates] chooses which instances a client is offered as recipients in the
// first place. [Score] says how much an instance has to give, from 0 to 100; it
// is published as the weight that Envoy balances by while no picker answers.
// [Outcomes] keeps the share of an instance's requests that failed. [SaturationOf]
// says whether there is anything free for a request at all.
//
// Three things hold under every policy.
//
// Health filters before load decides. An instance that fails fast has a short
// queue and low latency, so a weighted sum alone would send it everything: what
// is not ready is no candidate, and what fails comes after all that does not,
// whatever its load or score. Only when all fail does none count as failing.
//
// What is not known rejects nothing. A load report is fresh, stale or missing;
// without a fresh one, the picker's own requests in flight say what an instance
// is doing.
//
// Regions come before load. An instance of a preferred region is tried before
// any of the next one, as long as the first has room: see [OverflowMargin].
//
// The package is pure. It keeps nothing between calls, reads no clock, draws no
// random numbers, does no I/O and starts no goroutine: the same input gives the
// same answer in a router, a test and a simulation. What looks random is a hash
// of the request's id, or of a seed that the caller gives.
package routing
