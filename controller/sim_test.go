package controller_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/memory"
	"github.com/mrgc/mrgc/internal/state/schema"
)

// story is leaders of one loop, one after the other and sometimes within another,
// to whom things happen at their calls.
type story struct {
	random *rand.Rand
	data   *memory.Data
	world  *world
	wanted int // by hand, so far

	token  int64
	depth  int // of leaders that sleep while others lead
	calm   bool
	log    []string
	wrong  []string
	killed int
	slept  int
}

func newStory(seed uint64) *story {
	return &story{
		random: rand.New(rand.NewPCG(seed, 7)), data: memory.New(nil), world: &world{launched: map[string]int{}}, wanted: 3,
	}
}

func (s *story) note(format string, arguments ...any) {
	s.log = append(s.log, fmt.Sprintf(format, arguments...))
}

// lead is a leader's life: some rounds, with a clock that shows anything.
func (s *story) lead(rounds int) error {
	s.token++
	token, skew := s.token, time.Duration(s.random.Int64N(int64(2*time.Hour)))-time.Hour
	life, die := context.WithCancel(context.Background())
	defer die()
	l := &leader{story: s, token: token, die: die}
	l.Store = s.data.Open()
	loop := scaler(s.world.observe, func(ctx context.Context, id string, action launch) error {
		return l.call("execute "+id, func() error {
			err := s.world.execute(ctx, id, action)
			if there := len(s.world.launched); there > s.wanted {
				s.wrong = append(s.wrong, fmt.Sprintf("%d launched where %d are wanted", there, s.wanted))
			}
			return err
		})
	})
	as := &controller.Leader{Store: l, Token: token, Now: func() time.Time { return time.Now().Add(skew) }}
	var err error
	for range rounds {
		if life.Err() != nil {
			break
		}
		err = loop.Round(life, as)
		s.note("leader %d: round: %v", token, err)
	}
	return err
}

// leader makes calls, at which things happen.
type leader struct {
	state.Store
	story *story
	token int64
	die   context.CancelFunc
	dead  bool
}

var errStore = errors.New("no answer")

func (l *leader) call(what string, do func() error) error {
	s := l.story
	if l.dead {
		return errKilled
	}
	if s.calm {
		return do()
	}
	switch s.random.IntN(24) {
	case 0, 1: // killed, before or after
		if s.random.IntN(2) == 0 {
			_ = do()
			what += ", done"
		}
		s.note("leader %d: killed at: %s", l.token, what)
		s.killed++
		l.dead = true
		l.die()
		return errKilled
	case 2: // sleeps, while another leads
		if s.depth < 2 {
			s.note("leader %d: sleeps before: %s", l.token, what)
			s.slept++
			s.depth++
			_ = s.lead(1 + s.random.IntN(3))
			s.depth--
			s.note("leader %d: wakes", l.token)
		}
	case 3: // the answer is lost
		_ = do()
		s.note("leader %d: no answer to: %s", l.token, what)
		return errStore
	case 4: // the request is lost
		s.note("leader %d: lost: %s", l.token, what)
		return errStore
	case 5: // somebody wants more
		if s.wanted < 12 {
			s.wanted++
			s.note("by hand: %d", s.wanted)
			err := s.data.Edit(schema.AutoscalingState, use1, map[string]json.RawMessage{"desired_capacity": json.RawMessage(strconv.Itoa(s.wanted))})
			Expect(err).NotTo(HaveOccurred())
		}
	}
	return do()
}

func (l *leader) Get(ctx context.Context, table schema.Table, key state.Key) (item state.Item, err error) {
	err = l.call("get", func() (err error) { item, err = l.Store.Get(context.WithoutCancel(ctx), table, key); return err })
	return item, err
}

func (l *leader) Write(ctx context.Context, table schema.Table, w state.Write) (version int64, err error) {
	err = l.call(fmt.Sprintf("write %s on version %d", w.Fields, w.Version), func() (err error) {
		version, err = l.Store.Write(context.WithoutCancel(ctx), table, w)
		return err
	})
	return version, err
}

var _ = Describe("A thousand stories of leaders that are killed, sleep, and get no answers, while people write by hand", func() {
	It("end with every instance that is wanted, and never have one too many", func() {
		killed, slept := 0, 0
		for i := range uint64(1000) {
			seed := uint64(GinkgoRandomSeed())*1000 + i
			s := newStory(seed)
			for range 6 {
				_ = s.lead(1 + s.random.IntN(4))
			}
			s.calm = true
			for range 4 {
				_ = s.lead(3)
			}
			explain := func() string {
				text := fmt.Sprintf("seed %d\n", seed)
				for _, line := range s.log {
					text += line + "\n"
				}
				return text
			}
			Expect(s.wrong).To(BeEmpty(), explain)
			Expect(s.world.launched).To(HaveLen(s.wanted), explain)
			row, err := state.AutoscalingTable(s.data.Open()).Get(context.Background(), use1)
			Expect(err).NotTo(HaveOccurred(), explain)
			Expect(row.Value.Journal.Pending).To(BeEmpty(), explain)
			Expect(row.Value.DesiredCapacity).To(Equal(s.wanted), explain)
			killed, slept = killed+s.killed, slept+s.slept
		}
		Expect(killed).To(BeNumerically(">", 1000))
		Expect(slept).To(BeNumerically(">", 300))
	})
})
