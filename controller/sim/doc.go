// Package sim plays three regions in virtual time, with the controllers' own decisions
// (packages failover and autoscaler) and everything else made up: processes that crash
// at any line, pause, and have clocks that differ; messages that are late, lost or
// repeated; links that are cut; disks that are slow; a store that is strongly consistent where it can be
// reached, and one whose replicas lag and where the last writer wins; an accelerator
// and EC2 with their documented quirks; tenants' load.
//
//	outcome := sim.Run(seed, sim.Options{})
//	if outcome.Violation != "" { … } // sim.Run(seed, sim.Options{Tell: os.Stdout}) tells its story
//
// A seed decides everything: the same one plays the same story each time. For an hour
// things go wrong, then nothing does any more, and after another hour and a quarter all
// must be well. All the time a watch looks at what really happens, not at what
// controllers believe ([Invariants]).
//
// What a process does is written as it would be in a program, one call after another
// ([proc]); it can die or stand still between any two lines that wait for something.
// A call that was sent takes effect although its caller is gone, and one whose answer
// is lost has happened.
//
// What is not modelled: requests one by one (load is a rate), Envoy's own spill to other
// regions, and the store's consistency itself: a strongly consistent table is one copy
// that a region reaches while it is connected to a majority.
package sim
