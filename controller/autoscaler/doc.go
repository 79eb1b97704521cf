// Package autoscaler decides how many GPU instances a region has, and which.
//
//	obs := autoscaler.Observation{Term: lease.Token, Load: load, Instances: listed, Listed: true, …}
//	next, actions := autoscaler.Step(config, state, obs, now)
//	// store next, conditionally; only then do the actions, and report launches' results
//	// with the next observation
//
// Step first decides how many are wanted ([State.Desired], and why), then what is to be
// done to have so many. It is called every ten seconds or so, by the leader of the region.
//
// # How many
//
// The plain rules: up when a ready instance has had more than TargetHigh requests/s for
// UpAfter, down when less than half of the target for DownAfter, at most once in
// Cooldown, within Min and Max; a number written by hand beats them. Each of these goes
// further, and can be switched on by itself:
//
//   - Learn: requests/s are weighed by what their model takes, in tokens/s that an
//     instance was seen to serve in time ([Capacity]);
//   - Reserve: there is enough for this region's share of whichever other region is lost;
//   - Forecast: instances are started before the rise, by the days before ([Forecast]),
//     with a margin that finds by itself what keeps late requests below 1 %.
//
// # Which
//
// Every instance has a [Member] in the state from before it is launched until it is
// gone. What a crash leaves behind is found by the intent's name, which is also the
// instance's tag and, with the attempt's number, the launch's client token:
//
//   - crashed after the state was stored: no instance has the tag, and the launch is
//     repeated after Settle with the same token;
//   - crashed after the launch: the listing has the tag;
//   - an instance that no member names, of a lost state or a launch that was repeated
//     where tokens are not honoured, becomes a member, and is surplus if it is one.
//
// A member leaves in three steps, each waits for the one before: drained (nothing in
// flight), washed, terminated. One that never became ready within BootTimeout, or that
// has not been for UnreadyTimeout, is replaced; what is dead has nothing to drain. When
// half of the fleet looks dead at once, the looking may have failed, or what they have
// in common: then it takes three times as long. Where EC2 has no capacity in a zone, the next one is tried, and that zone
// again after ZonePause.
//
// What is not known moves nothing: without a fresh load the number stays, and without
// the fleet's own word nothing is drained or terminated.
//
// The package is pure: it reads no clock, does no I/O and starts no goroutine.
package autoscaler
