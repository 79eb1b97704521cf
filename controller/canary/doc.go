// Package canary judges a new version of a model against the one that it is to
// replace, by the requests that both are answering: does it fail more of them, is
// its first token later, or does each token take longer?
//
//	judge, err := canary.New(canary.Config{Share: 0.05}, now)
//	…
//	verdict := judge.Observe(canary.Observation{Canary: true, TTFT: ttft, …}, now)
//	if verdict.Worse { … } // roll back: verdict.Signal says what is worse
//
// # What is compared
//
// Requests are compared with others of their size that ended at about the same
// time, and with nothing else. They are gathered by size into blocks of so many
// that one or two are the canary's; a block says how often, of all pairs of a
// canary's request and another, the canary's is the slower: u, half of the pairs if
// the versions are alike, whatever the distribution of their times is. Neither the
// hour of the day nor what tenants ask for, nor a few requests that take for ever,
// make a difference to it. Of failures, a block says how many of them were the
// canary's, when it had so many of the requests.
//
// # How often it is wrong
//
// It is looked at after every request, so that a test for a fixed number of them
// would sooner or later find a difference where there is none. Each block is
// therefore a fair bet against the canary's being no worse. Whoever begins with 1
// and wagers part of what he has, has at most 1 on average after any number of
// blocks if the canary is no worse, and ever reaches 1/α with a probability of at
// most α (Ville's inequality): see
//
//   - Waudby-Smith and Ramdas, "Estimating means of bounded random variables by
//     betting", J. R. Stat. Soc. B 86 (2024), for u, which is bounded and has the
//     mean 1/2: a block multiplies the stake by 1 + λ(u-1/2);
//   - Turner, Ly and Grünwald, "Generic E-variables for exact sequential k-sample
//     tests that allow for optional stopping", J. Stat. Plan. Inference 230 (2024),
//     for failures: a block multiplies it by the ratio of the probabilities of what
//     was seen, if the canary's odds were r times as high and if they were the same.
//
// The λ and r are fixed mixtures (Robbins, "Statistical methods related to the law
// of the iterated logarithm", Ann. Math. Stat. 41, 1970). What one stakes on
// a canary that is well for hours is lost, and would not notice if it then became
// worse. So part of the stake is kept, and is wagered piece by piece over the day
// (a mixture over when it becomes worse, as Shin, Ramdas and Rinaldo do in
// "E-detectors", New Engl. J. Stat. Data Sci. 2, 2024). With the next day the stake is
// 1 again, so that [Config.FalsePerDay] bounds the false verdicts of a day.
//
// That is exact as long as which version a request goes to says nothing about it:
// it is drawn by a hash. What conversations have in common weakens it: a long one
// is all on one side. And the first requests of conversations that have moved find
// nothing cached: [Config.WarmUp] passes them over.
//
// The package is pure: it reads no clock, draws no random numbers, does no I/O and
// starts no goroutine. What a Judge keeps is bounded by the number of sizes, however
// long it runs.
package canary
