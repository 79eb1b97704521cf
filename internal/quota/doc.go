// Package quota decides which tenant has to wait: because it has asked for more
// than its limits allow, or because nothing is free and it has more than its share.
//
//	verdict := limiter.Take(request, now)
//	if verdict.Reason != quota.ReasonNone { … } // 429, Retry-After: verdict.RetryAfter
//
// A [Limiter] keeps what tenants have asked for of late. A request is admitted or
// refused at once, and nothing waits in a queue here: whoever is refused is told
// when the same request would be admitted, if the tenant sends no other before.
// What is refused costs nothing, and what is admitted costs in the end what it has
// used ([Limiter.Settle]).
//
// [Over] is the rule of shares while nothing is free, and [Recent] remembers among
// whom it is shared.
//
// Several limiters hold a tenant to one limit together: each tells what it has let
// through ([Limiter.Tell]) and counts what the others have ([Limiter.Learn]), in the
// messages of package peers.
//
// The package is pure: time is an argument.
package quota
