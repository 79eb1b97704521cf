package memory_test

import (
	"context"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/memory"
	"github.com/mrgc/mrgc/internal/state/statetest"
)

func TestMemory(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "internal/state/memory")
}

var _ = statetest.Describe("memory", func() statetest.Open {
	data := memory.New(nil)
	return func(context.Context) (state.Store, error) { return data.Open(), nil }
})
