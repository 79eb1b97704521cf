// Package controller is a region's controller: one process of two or more leads,
// and another takes over within seconds when it is gone.
//
//	c, err := controller.New(controller.Config{Region: "use1", Regions: …, Store: store, Loops: …})
//	if err != nil { … }
//	err = c.Run(ctx)
//
// What it does while it leads is control loops: a [Loop] is a pure function of
// what is remembered, what is observed, and the time, and this package is the edge
// around it. It reads the loop's row, observes, decides, stores the decision and
// the actions with their reasons in one write, carries the actions out, and notes
// what came of them. Whenever it dies between two of these, its successor finds in
// the row what was decided and not known to be done, and does it again under the
// same id, by which it has effect once.
//
// Leadership is a lease (internal/lease). Every write of a loop carries its
// fencing token, and a new leader's first one shuts out whoever led before, however
// long that one was asleep. The clocks of controllers need not agree: what a loop
// is told of time never goes back, though its leaders' clocks may differ.
//
// A region's leader also writes its heartbeat and its metrics by the minute,
// measures how far other regions' rows lag ([Config.Alarm] says when that is too
// far), and looks at all regions' front doors and publishes what it sees
// ([Config.Door]), which is what the loop of failover goes by ([NewRouting]).
//
// While the store cannot be reached, nobody leads and nothing is decided; no
// request depends on it.
package controller
