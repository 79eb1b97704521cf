package gpu_test

import (
	"errors"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/gpu"
)

var _ = Describe("Clearing all GPUs", func() {
	const total = 1000
	all := func(int) (uint64, uint64, error) { return 990, total, nil }
	clear := func(int, []byte) (gpu.Cleared, error) {
		return gpu.Cleared{TotalBytes: total, ClearedBytes: 950, DirtyBytes: 8}, nil
	}
	counting := func(n int) func() (int, error) { return func() (int, error) { return n, nil } }

	It("clears each, and looks for something that nobody knows", func(ctx SpecContext) {
		var seen [][]byte
		m := gpu.Machine{Count: counting(3), Free: all, Clear: func(index int, canary []byte) (gpu.Cleared, error) {
			Expect(index).To(Equal(len(seen) % 3))
			seen = append(seen, canary)
			return clear(index, canary)
		}}
		for range 2 {
			cleared, err := m.ClearAll(ctx, time.Minute)
			Expect(err).NotTo(HaveOccurred())
			Expect(cleared).To(HaveLen(3))
			Expect(cleared).To(HaveEach(And(HaveField("ClearedBytes", BeEquivalentTo(950)), HaveField("Took", BeNumerically(">", 0)))))
		}
		Expect(seen).To(HaveEach(HaveLen(32)))
		Expect(seen[0]).NotTo(Equal(seen[3]), "another one each time")
	})

	It("waits until memory has come back, all of it", func(ctx SpecContext) {
		free, asked := []uint64{100, 500, 920, 960, 960}, 0
		m := gpu.Machine{Count: counting(1), Clear: func(int, []byte) (gpu.Cleared, error) {
			Expect(asked).To(Equal(len(free)), "not while more comes back")
			return clear(0, nil)
		}, Free: func(int) (uint64, uint64, error) { asked++; return free[asked-1], total, nil }}
		_, err := m.ClearAll(ctx, time.Minute)
		Expect(err).NotTo(HaveOccurred())
	})

	It("tries again when somebody took some meanwhile", func(ctx SpecContext) {
		tries := 0
		m := gpu.Machine{Count: counting(1), Free: all, Clear: func(int, []byte) (gpu.Cleared, error) {
			tries++
			return gpu.Cleared{TotalBytes: total, ClearedBytes: uint64(800 + 100*(tries/3))}, nil
		}}
		cleared, err := m.ClearAll(ctx, time.Minute)
		Expect(err).NotTo(HaveOccurred())
		Expect(cleared[0].Coverage()).To(BeNumerically("==", 0.9))
		Expect(tries).To(Equal(3))
	})

	failed := errors.New("failed")
	DescribeTable("fails", func(ctx SpecContext, m gpu.Machine, because string) {
		cleared, err := m.ClearAll(ctx, 20*time.Millisecond)
		Expect(err).To(MatchError(ContainSubstring(because)))
		Expect(cleared).To(BeNil(), "there is nothing that could be taken for a success")
	},
		Entry("when they cannot be counted", gpu.Machine{Count: func() (int, error) { return 0, failed }}, "clear GPU memory: failed"),
		Entry("when there is none", gpu.Machine{Count: counting(0)}, "no GPU is seen"),
		Entry("when a process keeps some", gpu.Machine{Count: counting(2), Free: func(i int) (uint64, uint64, error) { return 899 + uint64(1-i), total, nil }, Clear: clear},
			"GPU 1: clear GPU memory: 899 of 1000 bytes are free after 20ms: 90 % are needed, and a process has the rest still"),
		Entry("when too little is overwritten", gpu.Machine{Count: counting(1), Free: all, Clear: func(int, []byte) (gpu.Cleared, error) {
			return gpu.Cleared{TotalBytes: total, ClearedBytes: 899}, nil
		}}, "899 of 1000 bytes could be overwritten after 20ms"),
		Entry("when it cannot be seen what is free", gpu.Machine{Count: counting(1), Free: func(int) (uint64, uint64, error) { return 0, 0, failed }}, "GPU 0: failed"),
		Entry("when something is not zero afterwards", gpu.Machine{Count: counting(1), Free: all, Clear: func(int, []byte) (gpu.Cleared, error) {
			return gpu.Cleared{TotalBytes: total, ClearedBytes: 950}, failed
		}}, "GPU 0: failed"),
	)

	It("of a machine that has none, or by a program without CUDA, is an error", func(ctx SpecContext) {
		_, total, err := gpu.Free(0)
		if err == nil {
			Skip("this machine has a GPU")
		}
		Expect(total).To(BeZero())
		Expect(err).To(MatchError(gpu.ErrNone))
		_, err = gpu.ClearAll(ctx)
		Expect(err).To(MatchError(gpu.ErrNone))
	})
})
