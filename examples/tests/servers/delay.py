"""A delay line: holds each packet that the kernel queues for a while, and loses some.

delay.py QUEUE MILLISECONDS LOSS"""
import heapq, random, select, sys, time
from netfilterqueue import NetfilterQueue

number, delay, loss = int(sys.argv[1]), float(sys.argv[2]) / 1000, float(sys.argv[3])
held, count, chance = [], 0, random.Random(1)


def arrived(packet):
    global count
    if chance.random() < loss:
        packet.drop()
        return
    count += 1
    heapq.heappush(held, (time.monotonic() + delay, count, packet))


queue = NetfilterQueue()
queue.bind(number, arrived, 65535)
poll = select.epoll()
poll.register(queue.get_fd(), select.EPOLLIN)
print("bound", flush=True)
while True:
    now = time.monotonic()
    while held and held[0][0] <= now:
        heapq.heappop(held)[2].accept()
    if poll.poll(max(0, held[0][0] - time.monotonic()) if held else 1):
        queue.run(block=False)
