// Package failover decides which regions tenants are sent to: the slow, outer loop
// of failover, behind Envoy's own, which spills to other regions within seconds.
//
//	reader := failover.NewReader(config)                     // this process's memory
//	…
//	obs := failover.Observation{
//		Term:  lease.Token,                                  // the leadership under which this runs
//		Views: reader.Read(reports, now),                    // what each region's controller saw of all
//		Dials: dials,                                        // what the accelerator says
//	}
//	next, actions := failover.Step(config, state, obs, now)
//	if !next.Same(state) { … }                           // store next, conditionally
//	…                                                    // and only then do the actions
//
// One [State] holds every region, so that what must hold of all of them together is
// decided in one place and stored in one conditional write. Each region is in one
// [Phase]:
//
//	NORMAL → DEGRADED         someone sees it down or with too little ready: nothing moves yet
//	DEGRADED → NORMAL         nobody has for Calm
//	DEGRADED → FAILOVER_ACTIVE  a quorum has seen it down for Confirm, and the others can carry it
//	FAILOVER_ACTIVE → RECOVERING  a quorum has seen it well for Validate
//	RECOVERING → NORMAL       the dial went up in Stages, well for Hold at each
//	RECOVERING → FAILOVER_ACTIVE  it went down again
//
// A leader that takes over begins to count anew how long it has seen what it sees, as
// another's clock says nothing to it, unless it has watched before ([State.Watched]).
//
// # What it goes by
//
// Every region's controller looks at every region's front door and reports what it
// saw ([Report]); a region is judged by the majority of all regions, of which at
// least one is another. So no region is judged by itself alone, and behind a
// partition that leaves no majority nothing moves. A report is fresh, stale or
// missing ([Freshness]): its age is how long ago the reader saw its number rise, by
// the reader's own clock, so that neither clocks that differ nor reports that come
// late or twice make a dead region look well. When every region looks down, it is the
// looking that failed, and nobody is judged.
//
// # What it never does
//
// It lowers no dial unless another region is at 100 %, by the state and by what the
// accelerator says, and serves; it takes out one region at a time; and it turns a
// dial's direction at most once in FlapWindow. Where that keeps a dial up although the
// region is down again, the drain still happens, and the accelerator's own health
// checks, which ignore dials, see to new connections.
//
// The package is pure: it reads no clock, does no I/O and starts no goroutine.
package failover
