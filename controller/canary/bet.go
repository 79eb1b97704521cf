package canary

import (
	"math"
	"math/bits"
	"time"

	"github.com/mrgc/mrgc/internal/size"
)

// The mixtures, in equal parts. With a λ of 0.5 one wins in the long run if the
// canary is the slower in more than 52 of 100 pairs: what makes less of a
// difference, such as 2 % of a time that varies by half of itself, is never held
// against it. The odds of failure must be about 1.4 times as high.
var (
	timeBets = [bets]float64{0.5, 1, 1.5}
	oddsBets = [bets]float64{2, 5, 20}
)

// bets are how many there are on each signal.
const bets = 3

// bucketOf is the number of the bucket of package size that tokens are in; of an
// unknown size it is 0.
func bucketOf(tokens int) int {
	if tokens <= 0 {
		return 0
	}
	return bits.Len(uint(size.Round(tokens, 0).Prompt))
}

// block is what is compared with each other: the next so many requests of one size,
// of whichever version.
type block struct {
	canary, other []float64
}

func (b *block) add(value float64, canary bool) (requests int) {
	if canary {
		b.canary = append(b.canary, value)
	} else {
		b.other = append(b.other, value)
	}
	return len(b.canary) + len(b.other)
}

func (b *block) clear() { b.canary, b.other = b.canary[:0], b.other[:0] }

// timeFactors are what the time bets pay: the mean of 1 + λ(u-1/2) is 1 if the
// versions are alike.
func (b *block) timeFactors() (factors [bets]float64) {
	slower := 0.0
	for _, c := range b.canary {
		for _, o := range b.other {
			switch {
			case c > o:
				slower++
			case c == o:
				slower += 0.5
			}
		}
	}
	u := slower / float64(len(b.canary)*len(b.other))
	for i, bet := range timeBets {
		factors[i] = 1 + bet*(u-0.5)
	}
	return factors
}

// oddsFactors are what the bets on odds pay: r to the power of the failures that
// were the canary's, over its mean when any requests of the block may have
// been the ones that failed (the hypergeometric distribution).
func (b *block) oddsFactors() (factors [bets]float64) {
	failed := count(b.canary)
	all := failed + count(b.other)
	for i, r := range oddsBets {
		factors[i] = math.Pow(r, float64(failed)) / meanPower(r, all, len(b.canary), len(b.other))
	}
	return factors
}

func count(failures []float64) (n int) {
	for _, f := range failures {
		n += int(f)
	}
	return n
}

// meanPower is the mean of r to the power of how many of those drawn, without
// putting back, are of the first kind.
func meanPower(r float64, drawn, first, second int) float64 {
	mean := 0.0
	for k := max(0, drawn-second); k <= min(drawn, first); k++ {
		log := logChoose(first, k) + logChoose(second, drawn-k) - logChoose(first+second, drawn)
		mean += math.Exp(log + float64(k)*math.Log(r))
	}
	return mean
}

func logChoose(n, k int) float64 {
	return logFactorial(n) - logFactorial(k) - logFactorial(n-k)
}

func logFactorial(n int) float64 {
	l, _ := math.Lgamma(float64(n) + 1)
	return l
}

// stake is what has become of 1.
type stake struct {
	wagered [bets]float64
	kept    float64
	pieces  int // of it that have been wagered
}

const (
	// firstPart is wagered at once, as most canaries that are worse are from the
	// beginning; the rest in equal pieces through the day.
	firstPart = 0.5
	// everyPiece is how long one that becomes worse later waits at most until
	// something is wagered that has not been lost before.
	everyPiece = 2 * time.Minute
	allPieces  = int(day / everyPiece)
)

func newStake() *stake {
	s := &stake{kept: 1}
	s.wager(firstPart)
	return s
}

func (s *stake) wager(part float64) {
	part = min(part, s.kept)
	s.kept -= part
	for i := range s.wagered {
		s.wagered[i] += part / bets
	}
}

// release wagers the pieces that are due so long after the stake was 1.
func (s *stake) release(since time.Duration) {
	for ; s.pieces < min(int(since/everyPiece), allPieces-1); s.pieces++ {
		s.wager((1 - firstPart) / float64(allPieces-1))
	}
}

func (s *stake) win(factors [bets]float64) {
	for i, f := range factors {
		s.wagered[i] *= f
	}
}

func (s *stake) log() float64 {
	sum := s.kept
	for _, w := range s.wagered {
		sum += w
	}
	return math.Log(sum)
}

// needed is the logarithm of the stake at which there is a verdict.
func (j *Judge) needed(i int) float64 { return -math.Log(part[i] * j.config.FalsePerDay) }
