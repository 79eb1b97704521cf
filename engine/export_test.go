package engine

import "time"

// Doubt is how long a slot is doubted.
const Doubt = doubt

// The endings of a request.
const (
	EndRefused  = endRefused
	EndAnswered = endAnswered
	EndVanished = endVanished
)

// Ending is what has become of a request.
type Ending = ending

// SlotTable is the table of an engine's slots.
type SlotTable struct{ table slotTable }

// NewSlotTable is of n idle slots.
func NewSlotTable(n int) *SlotTable {
	return &SlotTable{slotTable{slots: make([]slot, n), doubt: doubt}}
}

// Keep is slotTable.keep.
func (t *SlotTable) Keep(salt string) { t.table.keep(salt) }

// Grant is what a request may use.
type Grant struct {
	Slot       int
	All, Reuse bool
}

// Take is slotTable.take.
func (t *SlotTable) Take(salt string, all bool, now time.Time) (Grant, bool) {
	g, ok := t.table.take(salt, all, now)
	return Grant{g.slot, g.all, g.reuse}, ok
}

// Release is slotTable.release.
func (t *SlotTable) Release(g Grant, salt string, end Ending, now time.Time) {
	t.table.release(grant{g.Slot, g.All, g.Reuse}, salt, end, now)
}

// Insert puts members in front of an object's own.
var Insert = insert

// Spreads says whether llama.cpp makes several requests of one.
var Spreads = spreads

// PlantWithoutPause has the guard try again at once.
func (g *Guard) PlantWithoutPause() { g.washer.pause = 0 }

// Hasten has the guard of an engine with slots doubt them for so long only, and try
// again to plant after so long.
func (g *Guard) Hasten(doubt, pause time.Duration) {
	g.cache.(*slottedCache).slots.table.doubt = doubt
	g.washer.pause = pause
}
