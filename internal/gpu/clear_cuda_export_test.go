//go:build cgo && nvml

package gpu

import "errors"

// Memory is memory, for tests that plant something in it.
type Memory struct{ *memory }

// TakeMemory is takeMemory; GiveBack has to be called on the same goroutine.
func TakeMemory(index int, limit uint64) (Memory, error) {
	m, err := takeMemory(index, limit)
	return Memory{m}, err
}

func (m Memory) Plant(canary []byte) error             { return m.plant(canary) }
func (m Memory) Search(canary []byte) (Cleared, error) { return m.search(canary) }
func (m Memory) Clear(canary []byte) (Cleared, error)  { return m.clear(canary) }
func (m Memory) GiveBack() error                       { return m.giveBack() }

// ClearWithoutOverwriting is what a broken clear would do.
func (m Memory) ClearWithoutOverwriting(canary []byte) error {
	found, err := m.search(canary)
	return errors.Join(err, m.check(canary, &found))
}

// PlantedEvery is plantedEvery.
const PlantedEvery = plantedEvery

// Bytes is how much was free.
func (m Memory) Bytes() (bytes uint64) {
	for _, b := range m.blocks {
		bytes += b.size
	}
	return bytes
}
